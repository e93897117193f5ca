"""The stand-in, seen through the real azure-ai-ml: every capability that the tests of the product build on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from helpers.marks import needs_azures_server
from sdk_worker import SdkWorker
from standin import StandIn

TWO_NODES = {"instance_count": 2, "distribution": {"type": "PyTorch", "process_count_per_instance": 1}}
TRAIN = """
import os, sys
from pathlib import Path
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
print("sum", total.item(), "on node", os.environ["NODE_RANK"], flush=True)
if dist.get_rank() == 0:
    folder = Path(sys.argv[2], "merged")
    folder.mkdir()
    (folder / "config.json").write_text(Path(sys.argv[1]).read_text())
dist.destroy_process_group()
"""
LOG_METRIC = """
import json, os, time, urllib.request
uri = os.environ["MLFLOW_TRACKING_URI"].replace("azureml://", "https://") + "/api/2.0/mlflow/runs/log-batch"
metrics = [{"key": "loss", "value": 1.5 / step, "timestamp": 0, "step": step} for step in (1, 2)]
body = {"run_id": os.environ["MLFLOW_RUN_ID"], "metrics": metrics, "tags": [{"key": "seed", "value": "7"}]}
headers = {"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"], "Content-Type": "application/json"}
urllib.request.urlopen(urllib.request.Request(uri, json.dumps(body).encode(), headers))
"""
READ_SECRET = """
import sys, httpx
from azure.identity import ManagedIdentityCredential
token = ManagedIdentityCredential().get_token("https://vault.azure.net/.default").token
uri = "https://kvftkit.vault.azure.net/secrets/HF-TOKEN?api-version=7.4"
answer = httpx.get(uri, headers={"Authorization": f"Bearer {token}"})
print("secret has", len(answer.json()["value"]), "letters")
"""
CONTAINER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.reply(b"ok")
    def do_POST(self): self.reply(self.path.encode() + self.rfile.read(int(self.headers["Content-Length"])))
    def reply(self, body):
        self.send_response(200); self.end_headers(); self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """An empty folder for a job's code, with a file that no job should get."""
    folder = tmp_path / "code"
    (folder / "junk").mkdir(parents=True)
    (folder / "junk" / "big.bin").write_bytes(b"0" * 1000)
    (folder / ".amlignore").write_text("junk/\n")
    return folder


def test_credential_and_workspace(azure: StandIn, sdk: SdkWorker):
    assert sdk("region") == "eastus"
    wrong = sdk.attempt("region_with_secret", "not-it")
    assert wrong.error == "ClientAuthenticationError" and "AADSTS7000215" in wrong.message
    missing = sdk.attempt("region", "ws-other")
    assert missing.error == "ResourceNotFoundError" and "ws-other" in missing.message


def test_quota_sizes_and_clusters(azure: StandIn, sdk: SdkWorker):
    azure.quota.limits["standardNCADSH100v5Family"] = 40
    assert sdk("usages")["standardNCADSH100v5Family"] == (0, 40)
    assert sdk("sizes")["Standard_NC40ads_H100_v5"] == 40
    assert sdk("cluster", "gpu-cluster") == ("Standard_NC40ads_H100_v5", 2)
    assert sdk.attempt("cluster", "no-cluster").error == "ResourceNotFoundError"


def test_an_image_is_built_ahead_and_once(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    (tmp_path / "Dockerfile").write_text("FROM python:3.11\nRUN pip install torch\n")
    sdk("make_environment", "built-ahead", str(tmp_path))
    status, log = sdk("build_ahead", "built-ahead")
    assert status == "Succeeded" and "RUN pip install torch" in log
    before = len(azure.images.builds)
    sdk("build_ahead", "built-ahead")
    assert len(azure.images.builds) == before
    azure.images.clear()
    assert "built-ahead:1 is still being built after 0 minutes" in sdk("follow_build", "built-ahead", 0.0)
    assert "RUN pip install torch" in sdk("follow_build", "built-ahead", 60.0)


def test_data_versions_are_immutable_and_sent_once(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"1" * 100_000)
    sdk("make_data", "rows", "1", str(rows))
    assert 100_000 <= azure.record.uploaded_bytes < 101_000
    azure.record.clear()
    sdk("make_data", "rows", "2", str(rows))
    assert azure.record.uploaded_bytes == 0
    (tmp_path / "told").mkdir()
    shutil.copy(rows, tmp_path / "told")
    told = sdk("publish_and_tell", "told", str(tmp_path / "told"), str(tmp_path / "run" / "azure.log"))
    assert told == ["0.0 MiB of 0.1 MiB sent", "0.1 MiB of 0.1 MiB sent"]
    rows.write_bytes(b"2" * 100_000)
    changed = sdk.attempt("make_data", "rows", "1", str(rows))
    assert changed.error and "already exists" in changed.message


def test_a_job_on_two_nodes_and_a_model_from_its_output(azure: StandIn, sdk: SdkWorker, code: Path, tmp_path: Path):
    (code / "train.py").write_text(TRAIN)
    (tmp_path / "data.json").write_text('{"name": "trained"}')
    data = sdk("make_data", "config", "1", str(tmp_path / "data.json"))
    line = "python train.py ${{inputs.data}} ${{outputs.made}}"
    job = sdk("submit", str(code), line, {**TWO_NODES, "data": data, "shm_size": "8g", "timeout": 600})
    followed = sdk.attempt("stream", job)
    assert followed.value == "Completed", followed
    assert "Streaming user_logs/std_log_process_0.txt" in followed.printed and "sum 3.0 on node 0" in followed.printed
    assert azure.jobs[job].snapshot == [".amlignore", "train.py"]
    assert sdk("download", job, str(tmp_path / "got")) == ["named-outputs/made/merged/config.json"]
    azure.record.clear()
    path = sdk("register", "from-job", f"azureml://jobs/{job}/outputs/made/paths/merged")
    assert path.endswith(f"/datastores/workspaceblobstore/paths/azureml/{job}/made/merged")
    assert not azure.record.to(host="blob.core.windows.net")
    missing = sdk.attempt("register", "nothing", f"azureml://jobs/{job}/outputs/made/paths/nothing")
    assert "does not exist" in missing.message
    assert azure.costing() == []


def test_metrics_of_a_job_arrive_by_mlflow(azure: StandIn, sdk: SdkWorker, code: Path):
    (code / "log.py").write_text(LOG_METRIC)
    job = sdk("submit", str(code), "python log.py", {})
    assert sdk("stream", job) == "Completed"
    assert [point["value"] for point in azure.tracking[job].metrics["loss"]] == [1.5, 0.75]
    assert azure.tracking[job].tags == {"seed": "7"}


def test_a_secret_reaches_a_job_by_its_managed_identity_alone(azure: StandIn, sdk: SdkWorker, code: Path):
    azure.workspace.secrets["HF-TOKEN"] = "hf_not_to_be_seen"
    (code / "read.py").write_text(READ_SECRET)
    with_identity = sdk("submit", str(code), "python read.py", {"managed_identity": True})
    assert "secret has 17 letters" in sdk.attempt("stream", with_identity).printed
    assert azure.record.holding("hf_not_to_be_seen") == []
    without = sdk("submit", str(code), "python read.py", {})
    assert sdk.attempt("stream", without).error == "JobException"


def test_a_connection_gives_its_key(azure: StandIn, sdk: SdkWorker):
    azure.workspace.connections["hugging-face"] = "hf_key"
    assert sdk("connection_key", "hugging-face") == "hf_key"


def test_jobs_on_a_cluster_are_cancelled_time_out_and_fail(azure: StandIn, sdk: SdkWorker, code: Path):
    job = sdk("submit", str(code), "sleep 600", {"compute": "gpu-cluster"})
    assert azure.jobs[job].started.wait(20) and azure.costing() == [f"job {job}"]
    sdk("cancel", job)
    assert sdk("stream", job) == "Canceled"
    slow = sdk("submit", str(code), "sleep 600", {"timeout": 1})
    assert sdk("stream", slow) == "Canceled"
    failing = sdk.attempt("stream", sdk("submit", str(code), "echo going; exit 3", {}))
    assert failing.error == "JobException" and "status code 3" in failing.message and "going" in failing.printed
    unknown = sdk.attempt("submit", str(code), "true", {"compute": "no-cluster"})
    assert unknown.error and "no-cluster" in unknown.message


@needs_azures_server
def test_an_endpoint_from_first_deployment_to_its_end(azure: StandIn, sdk: SdkWorker, scoring: str):
    assert sdk("make_endpoint", "ep-life").startswith("https://ep-life.")
    assert sdk("deploy", "ep-life", "blue", scoring) == "Succeeded"
    assert sdk("ask", "ep-life", {"q": 1})[0] == 404, "no traffic yet"
    assert sdk("ask", "ep-life", {"q": 1}, "blue") == (200, '{"heard": {"q": 1}, "model": "m"}')
    assert "model m" in sdk("container_log", "ep-life", "blue")
    assert sdk("ask_with", "ep-life", "wrong-key") == 401
    assert sdk("set_traffic", "ep-life", {"blue": 100}) == {"blue": 100}
    assert sdk("deploy", "ep-life", "green", scoring) == "Succeeded"
    sdk("set_traffic", "ep-life", {"blue": 100}, {"green": 50})
    assert {sdk("ask", "ep-life", {})[0] for _ in range(4)} == {200}
    green = azure.serving.find("ep-life", "green")
    assert green and (green.answered, green.mirrored) == (0, 2)
    sdk("set_traffic", "ep-life", {"blue": 50, "green": 50})
    assert {sdk("ask", "ep-life", {})[0] for _ in range(4)} == {200}
    assert green.answered == 2
    refused = sdk.attempt("delete_deployment", "ep-life", "blue")
    assert "50% of the traffic" in refused.message
    assert "add up to 90" in sdk.attempt("set_traffic", "ep-life", {"blue": 90}).message
    sdk("delete_endpoint", "ep-life")
    assert azure.costing() == [] and azure.quota.in_use["standardNCADSH100v5Family"] == 0


@needs_azures_server
def test_an_endpoint_with_entra_tokens(azure: StandIn, sdk: SdkWorker, scoring: str):
    sdk("make_endpoint", "ep-entra", "aad_token")
    sdk("deploy", "ep-entra", "blue", scoring)
    assert sdk("ask", "ep-entra", {}, "blue")[0] == 200
    assert sdk("ask_with", "ep-entra", "some-key") == 401
    sdk("delete_endpoint", "ep-entra")


def test_a_custom_container(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    (tmp_path / "serve.py").write_text(CONTAINER)
    azure.serving.containers["vllm/vllm-openai"] = [sys.executable, str(tmp_path / "serve.py"), "{port}"]
    sdk("make_endpoint", "ep-container")
    assert sdk("deploy_container", "ep-container", "blue", "vllm/vllm-openai:v0.10.1") == "Succeeded"
    answer = sdk("ask", "ep-container", {"a": 1}, "blue", "/v1/chat/completions")
    assert answer == (200, '/v1/chat/completions{"a":1}')
    sdk("delete_endpoint", "ep-container")


def test_an_identity_based_datastore(azure: StandIn, sdk: SdkWorker, tmp_path: Path):
    azure.workspace.identity_based = True
    (tmp_path / "rows.jsonl").write_text("by identity")
    sdk("make_data", "by-identity", "1", str(tmp_path / "rows.jsonl"))
    assert azure.record.uploaded_bytes == len("by identity") and not azure.record.to("POST", "/listSecrets")


DATA = {"dataType": "uri_file", "dataUri": "azureml://datastores/workspaceblobstore/paths/rows.jsonl"}
JOB = {"jobType": "Command", "command": "true", "environmentId": "x"}


@pytest.mark.parametrize(
    ("path", "api_version", "properties", "problem"),
    [
        ("data/odd/versions/1", "2023-04-01-preview", {**DATA, "colour": "red"}, "'colour' was unexpected"),
        ("jobs/odd", "2025-01-01-preview", {**JOB, "resources": {"nodes": 2}}, "'nodes' was unexpected"),
        ("jobs/odd", "2025-01-01-preview", {"jobType": "Command", "command": "true"}, "'environmentId' is a required"),
        ("jobs/odd", "2020-01-01", JOB, "no schema of api-version 2020-01-01"),
    ],
)
def test_a_body_that_breaks_its_schema_is_refused_and_remembered(
    azure: StandIn, sdk: SdkWorker, path: str, api_version: str, properties: dict, problem: str
):
    assert sdk("put_raw", path, api_version, {"properties": properties}) == 400
    with pytest.raises(AssertionError, match=problem):
        azure.verify()
    azure.violations.clear()


def test_a_host_that_is_not_azures_is_refused_and_remembered(azure: StandIn, sdk: SdkWorker):
    assert sdk.attempt("visit", "https://example.org/").error == "ProxyError"
    with pytest.raises(AssertionError, match=r"example\.org"):
        azure.verify()
    azure.proxy.refused.clear()


def test_requests_are_recorded_without_their_credentials(azure: StandIn, sdk: SdkWorker):
    sdk("region")
    (seen,) = azure.record.to("GET", "/workspaces/ws-test$", "management.azure.com")
    assert seen.headers["authorization"] == "***" and seen.status == 200 and seen.api_version
    assert azure.record.holding(azure.environment["AZURE_CLIENT_SECRET"]) == []
