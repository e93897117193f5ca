"""Faults that the stand-in can be asked for, and what the real SDK makes of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.marks import needs_azures_server
from sdk_worker import SdkWorker
from standin import StandIn
from standin.faults import FOREVER

WORKSPACE = "/workspaces/ws-test$"
CHECKPOINTS = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1], "checkpoint-1")
if folder.exists():
    sys.exit(print("going on from", folder.name))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("evicted", flush=True)))
folder.mkdir()
(folder / "sealed").write_text("")
time.sleep(600)
"""


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A file that no test has sent before."""
    path = tmp_path / "rows.bin"
    path.write_bytes(str(tmp_path).encode() * 10_000)
    return str(path)


def test_throttling_is_waited_out(azure: StandIn, sdk: SdkWorker):
    fault = azure.faults.throttled("GET", WORKSPACE, retry_after=0.1, times=2)
    assert sdk("region") == "eastus" and fault.met == 2
    assert [seen.status for seen in azure.record.to("GET", WORKSPACE)] == [429, 429, 200]


def test_unavailable_once_is_survived_and_for_ever_is_an_error(azure: StandIn, sdk: SdkWorker):
    azure.faults.unavailable("GET", WORKSPACE, times=1)
    assert sdk("region_few_retries") == "eastus"
    azure.faults.unavailable("GET", WORKSPACE)
    failed = sdk.attempt("region_few_retries")
    assert failed.error == "HttpResponseError" and "ServiceUnavailable" in failed.message


def test_forbidden_and_conflict_are_told_by_status_and_code(azure: StandIn, sdk: SdkWorker):
    azure.faults.forbidden("GET", WORKSPACE)
    assert sdk("error_code") == "403 AuthorizationFailed"
    azure.faults.clear()
    azure.faults.conflict("GET", WORKSPACE)
    assert sdk("error_code") == "409 ResourceConflict"


def test_a_token_that_expires_in_mid_upload(azure: StandIn, sdk: SdkWorker, rows: str):
    azure.workspace.identity_based = True
    fault = azure.faults.expired_token("PUT", r"blob\.core\.windows\.net/.*rows\.bin")
    outcome = sdk.attempt("make_data", "expired", "1", rows)
    assert fault.met == 1 and outcome.error
    assert sdk("make_data", "expired", "1", rows)


@pytest.mark.slow
def test_a_connection_cut_during_an_upload(azure: StandIn, sdk: SdkWorker, rows: str):
    fault = azure.faults.cut("PUT", r"blob\.core\.windows\.net/.*rows\.bin")
    assert sdk("make_data", "cut", "1", rows)
    assert fault.met == 1
    content = next(content for name, content in azure.store.everything() if name.endswith("/rows.bin") and content)
    assert content


@pytest.mark.parametrize(
    ("kind", "function"), [("data", "publish_by_digest"), ("models", "register_by_digest")], ids=["data", "model"]
)
def test_a_version_whose_answer_is_lost_is_found_by_its_digest(
    azure: StandIn, sdk: SdkWorker, tmp_path: Path, kind: str, function: str
):
    (tmp_path / "config.json").write_text(str(tmp_path))
    fault = azure.faults.lost("PUT", f"/{kind}/lost/versions/", times=FOREVER)
    assert sdk.attempt(function, "lost", str(tmp_path)).error == "StageError" and fault.met
    azure.faults.clear()
    (version,) = azure.resources.children(f"{kind}/lost/versions")
    assert sdk(function, "lost", str(tmp_path)) == (f"lost:{version['name']}", False)


def test_files_that_somebody_else_begins_to_send_are_sent_all_the_same(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    """Guard: changes.send, by which all files go."""
    (tmp_path / "rows.json").write_text(str(tmp_path))
    fault = azure.faults.being_sent("rows.json")
    assert sdk("publish_by_digest", "shared", str(tmp_path))[1] and fault.met == 1
    assert [content for name, content in azure.store.everything() if name.endswith("/rows.json")][-1]


def test_a_failed_build_fails_the_job_and_is_tried_again(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    (tmp_path / "Dockerfile").write_text("FROM python:3.12\n")
    sdk("make_environment", "fails-once", str(tmp_path))
    azure.faults.build_fails("ERROR: no such package")
    settings = {"environment": "azureml:fails-once:1"}
    failed = sdk.attempt("stream", sdk("submit", str(tmp_path), "true", settings))
    assert failed.error == "JobException" and "no such package" in failed.message
    assert sdk("stream", sdk("submit", str(tmp_path), "true", settings)) == "Completed"


def test_a_job_that_the_service_fails(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    azure.faults.job_fails("The node ran out of disk.")
    job = sdk("submit", str(Path(__file__).with_name("schemas")), "true", {})
    assert "ran out of disk" in sdk.attempt("stream", job).message


def test_an_evicted_spot_job_goes_on_with_its_outputs(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    (tmp_path / "train.py").write_text(CHECKPOINTS)
    fault = azure.faults.job_evicted(once_written="checkpoint-*/sealed")
    spot = {"queue_settings": {"job_tier": "Spot"}}
    job = sdk("submit", str(tmp_path), "python train.py ${{outputs.made}}", spot)
    followed = sdk.attempt("stream", job)
    assert followed.value == "Completed" and fault.met == 1 and azure.jobs[job].attempts == 2
    assert "evicted" in followed.printed and "going on from checkpoint-1" in followed.printed


@needs_azures_server
def test_deployments_that_do_not_come_up(azure: StandIn, sdk: SdkWorker, scoring: str):
    sdk("make_endpoint", "ep-bad")
    azure.faults.init_fails()
    failed = sdk.attempt("deploy", "ep-bad", "blue", scoring)
    assert failed.error == "HttpResponseError" and "ResourceNotReady" in failed.message
    assert sdk("deployment_state", "ep-bad", "blue") == "Failed"
    assert "StopIteration" in sdk("container_log", "ep-bad", "blue")
    assert azure.costing() == ["deployment ep-bad/blue"]
    azure.faults.never_healthy()
    assert "Liveness probe failed" in sdk.attempt("deploy", "ep-bad", "blue", scoring).message
    azure.quota.limits["standardNCADSH100v5Family"] = 0
    assert "OutOfQuota" in sdk.attempt("deploy", "ep-bad", "green", scoring).message
    sdk("delete_endpoint", "ep-bad")
    assert azure.costing() == []


@needs_azures_server
def test_nonsense_from_a_healthy_deployment(azure: StandIn, sdk: SdkWorker, scoring: str):
    sdk("make_endpoint", "ep-odd")
    sdk("deploy", "ep-odd", "blue", scoring)
    azure.faults.nonsense("<html>", times=1)
    assert sdk("ask", "ep-odd", {}, "blue") == (200, "<html>")
    assert sdk("ask", "ep-odd", {}, "blue")[0] == 200
    sdk("delete_endpoint", "ep-odd")
