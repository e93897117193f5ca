"""Each command that the README shows works: it is run, or planned where it would start a job or ask Azure."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from command import REPOSITORY, run_ftkit

from ftkit.config.schema import SIDE_STAGES, STAGES
from ftkit.config.sources import groups, options

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (python -m \S+.*?)(?:\s+#.*)?$", README, flags=re.MULTILINE)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file whose row has the columns of every example."""
    examples = [json.loads(block) for block in re.findall(r"```json\n(\{.*\})\n```", README)]
    row = {key: value for example in examples for key, value in example.items()}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "mgsm_ja.tsv").write_text("1+1\t2\n", encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("workspace_named")
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m ftkit ")])
def test_command_of_the_readme(command: str, rows: Path):
    arguments = shlex.split(command)[3:]
    mistaken = "sft.pakcing=false" in arguments
    if not mistaken and not any(a == "stage=prepare" for a in arguments):
        arguments = [re.sub(r"^stage=[\w,]+$", "stage=plan", a) for a in arguments if a != "check=true"]
    done = run_ftkit(*arguments, cwd=rows)
    assert done.status == (2 if mistaken else 0), done.err
    if mistaken:
        assert all(line.strip() in README for line in done.err.splitlines())


def test_readme_names_every_stage_group_and_option():
    for stage in (*STAGES, *SIDE_STAGES):
        assert f"| `{stage}` |" in README
    for group in groups():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
        assert all(f"`{option}`" in row for option in options(group))


def test_its_two_commands_are_there_and_executable():
    for script in ("demo", "test"):
        assert f"$ scripts/{script}" in README
        assert (REPOSITORY / "scripts" / script).stat().st_mode & 0o111
