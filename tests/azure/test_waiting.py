"""Long waits say what is waited for and for how long already, and the SDK's own dots are not seen."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import pytest
from azure.core.polling import LROPoller, PollingMethod

from ftkit.config.schema import Workspace as Settings


class UntilReleased(PollingMethod):
    """An operation that ends when the test says so, and prints dots as the SDK's do."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def initialize(self, client: Any, initial_response: Any, deserialization_callback: Any) -> None: ...

    def run(self) -> None:
        print(".", end="", flush=True)
        self.released.wait(60)

    def status(self) -> str:
        return "Succeeded" if self.finished() else "InProgress"

    def finished(self) -> bool:
        return self.released.is_set()

    def resource(self) -> str:
        return "made"


@pytest.mark.filterwarnings("ignore")
def test_a_line_comes_again_and_again_until_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    changes = importlib.import_module("ftkit.platforms.azureml.changes")  # the SDK warns when it is imported
    workspaces = importlib.import_module("ftkit.platforms.azureml.workspace")
    monkeypatch.setattr(changes, "LINE_S", 0.01)
    monkeypatch.setattr(changes, "LOOK_S", 0.01)
    settings = Settings(subscription_id="s", resource_group="r", workspace_name="w")
    operation, lines = UntilReleased(), []

    def begin() -> LROPoller[str]:
        return LROPoller(None, None, lambda response: response, operation)

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            operation.released.set()

    workspace = workspaces.Workspace(settings, tmp_path / "azure.log")
    change = changes.Change(("delete the endpoint", "tiny"), begin, lambda: changes.State.UNDER_WAY)
    assert changes.make(workspace, change, say) == "made"
    assert set(lines) == {"still waiting to delete the endpoint tiny: 0 min so far"} and len(lines) >= 2
    assert capsys.readouterr().out == ""
