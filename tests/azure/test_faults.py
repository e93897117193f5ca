"""What goes wrong while data is published is said in words, without a traceback; then the same command completes."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import Command
from project import Project
from standin import StandIn
from standin.faults import FOREVER

pytestmark = pytest.mark.slow

DATA = "data/apto_reasoning_harmony"


@pytest.fixture(scope="module")
def prepared(azure: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    assert Project(folder, azure).ftkit("stage=prepare").status == 0
    return folder


@pytest.fixture
def project(azure: StandIn, prepared: Path, tmp_path: Path) -> Iterator[Project]:
    """Rows prepared; a workspace without assets."""
    azure.wipe()
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    yield Project(tmp_path, azure)
    assert azure.costing() == []


def refused(done: Command, *said: str) -> None:
    """Failed in words: one error with a cure, no traceback, no JSON."""
    assert done.status == 1, done.out
    for word in said:
        assert word in done.err, done.err
    assert done.err.startswith("error  cannot ") and "  cure   " in done.err
    assert "Traceback" not in done.err and "{" not in done.err


def completes(project: Project, stage: str = "publish") -> None:
    done = project.ftkit(f"stage={stage}")
    assert done.status == 0, str(done)
    if stage == "publish":
        assert re.search(r"^publish +data asset apto_reasoning_harmony:\w{12} \(new version\)", done.out, re.MULTILINE)


def test_forbidden(azure: StandIn, project: Project):
    fault = azure.faults.forbidden("PUT", DATA)
    done = project.ftkit("stage=publish")
    refused(done, "publish the data asset", "not allowed", "AzureML Data Scientist", "request ")
    assert fault.met and "AuthorizationFailed" in (project.run / "azure.log").read_text()
    azure.faults.clear()
    completes(project)


def test_throttled_once_is_waited_out(azure: StandIn, project: Project):
    fault = azure.faults.throttled("PUT", DATA)
    completes(project)
    assert fault.met == 1


def test_unavailable_once_is_tried_again(azure: StandIn, project: Project):
    fault = azure.faults.unavailable("PUT", DATA, times=1)
    completes(project)
    assert fault.met == 1


def test_unavailable_for_ever(azure: StandIn, project: Project):
    azure.faults.unavailable("PUT", DATA, times=FOREVER)
    refused(project.ftkit("stage=publish"), "not available", "the same command goes on")
    azure.faults.clear()
    completes(project)


def test_conflict(azure: StandIn, project: Project):
    azure.faults.conflict("PUT", DATA)
    refused(project.ftkit("stage=publish"), "something else is being done to it")
    completes(project)


def other_rows(azure: StandIn, folder: Path, count: int) -> Project:
    """Rows that were never sent before: what lies in the store already is not sent again."""
    project = Project(folder, azure, "tiny-azure", f"dataset.max_rows={count}")
    assert project.ftkit("stage=prepare").status == 0
    return project


def test_a_token_that_expires_in_mid_upload(azure: StandIn, tmp_path: Path):
    project = other_rows(azure, tmp_path, 101)
    azure.workspace.identity_based = True
    fault = azure.faults.expired_token("PUT", r"blob\.core.*tokens\.parquet")
    refused(project.ftkit("stage=publish"), "publish the data asset")
    assert fault.met
    completes(project)


@pytest.mark.slow
def test_a_connection_cut_during_upload_is_taken_up(azure: StandIn, tmp_path: Path):
    project = other_rows(azure, tmp_path, 102)
    fault = azure.faults.cut("PUT", r"blob\.core.*tokens\.parquet")
    completes(project)
    assert fault.met == 1


def test_a_wrong_client_secret(azure: StandIn, project: Project):
    done = project.ftkit("stage=publish", AZURE_CLIENT_SECRET="not-the-secret")
    refused(done, "no credential is accepted", "az login")
    assert "not-the-secret" not in done.err + project.all_text()
    completes(project)


def test_a_workspace_that_does_not_exist(azure: StandIn, project: Project):
    done = project.ftkit("stage=publish", "workspace.workspace_name=ws-other")
    refused(done, "there is no such workspace", "ws-other", "WORKSPACE_NAME=")


@pytest.mark.parametrize(
    ("stage", "what"), [("publish", DATA), ("environment", "/environments/ftkit-train/")], ids=lambda value: value
)
def test_ctrl_c_while_something_is_sent(azure: StandIn, project: Project, stage: str, what: str):
    fault = azure.faults.throttled("PUT", what, retry_after=30)
    process = project.started(f"stage={stage}")
    assert fault.reached.wait(60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and f"interrupted in {stage}" in err and "Traceback" not in err
    completes(project, stage)


def test_no_secret_is_left_anywhere(azure: StandIn, project: Project):
    completes(project)
    for secret in (azure.environment["AZURE_CLIENT_SECRET"], "a2tra2tra2"):
        assert secret not in project.all_text()
        assert azure.record.holding(secret) == []
