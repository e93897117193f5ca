"""A user's folder in tests: experiment=tiny-azure in it, by the command line, against the stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.command import Command, run_ftkit
from standin import StandIn


class Project:
    """A folder, and what lies in it of one run."""

    def __init__(self, folder: Path, azure: StandIn, name: str = "tiny-azure", *usual: str, **environment: str):
        self.folder, self.name = folder, name
        self._environment = azure.environment | environment
        self._usual = ("experiment=tiny-azure", f"run.name={name}", *usual)

    def ftkit(self, *arguments: str, **environment: str) -> Command:
        environment = self._environment | environment
        return run_ftkit(*self._usual, *arguments, cwd=self.folder, **environment)

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that runs on, for a test to interrupt."""
        return subprocess.Popen(
            [sys.executable, "-m", "ftkit", *self._usual, *arguments],
            cwd=self.folder,
            env=os.environ | self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def run(self) -> Path:
        return self.folder / "outputs" / self.name

    def record(self, stage: str) -> dict[str, Any]:
        return json.loads((self.run / stage / "record.json").read_text())

    def all_text(self) -> str:
        """Everything that lies in the folder."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
