"""What Azure's errors become: the reason in words, and a cure by what was touched."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from azure.core.exceptions import AzureError, HttpResponseError, ServiceResponseError

from ftkit.config.schema import Workspace as Settings
from ftkit.errors import StageError
from ftkit.platforms.azureml.capacity import Size, machines_counted
from ftkit.platforms.azureml.errors import translated
from ftkit.serving.client import TRIES, Busy, NotAnswering, score

SETTINGS = Settings(subscription_id="s", resource_group="g", workspace_name="w")


def told(error: AzureError):
    return translated(error, "submit a job that runs", "train", SETTINGS, Path("azure.log"))


def refused(status: int, url: str = "https://management.azure.com/x", message: str = "No.") -> HttpResponseError:
    error = HttpResponseError(message=message)
    error.status_code = status
    error.response = SimpleNamespace(request=SimpleNamespace(url=url), headers={})  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        (
            "https://ftkitstore.blob.core.windows.net/c/x",
            "Storage Blob Data Contributor on the storage account",
        ),
        ("https://ftkitstore.dfs.core.windows.net/c/x", "firewall"),
        ("https://safe.vault.azure.net/secrets/HF", "Key Vault Secrets User on the vault safe"),
        ("https://management.azure.com/subscriptions/s", "AzureML Data Scientist on the workspace"),
    ],
)
def test_the_role_that_is_missing_goes_by_what_was_touched(url: str, cure: str):
    assert cure in told(refused(403, url)).cure


@pytest.mark.parametrize(
    ("error", "what", "cure"),
    [
        (
            AzureError("\x1b[37m\n\x1b[30m\n1) Connection aborted.\x1b[0m"),
            "while files were sent: 1) Connection",
            "same",
        ),
        (AzureError("\x1b[37m\n\x1b[39m"), "AzureError", "the same command"),
        (ServiceResponseError("('Connection aborted.', Reset(104))"), "the connection broke off", "same"),
        (refused(400, message="There is already an endpoint with this name."), "already", "deployment.endpoint_name="),
        (
            refused(412, message="The condition was not met."),
            "changed at the same moment: The condition",
            "wait a minute",
        ),
        (refused(400, message="OutOfQuota: no."), "the quota is too small", "Azure's portal"),
    ],
)
def test_an_error_has_a_reason_in_words_and_a_cure(error: AzureError, what: str, cure: str):
    found = told(error)
    assert what in found.what and cure in found.cure and "\x1b" not in str(found)
    assert "check=true" not in found.cure, "a cure that leads back here"


@pytest.mark.parametrize(
    ("size", "count", "counted"),
    [
        ("Standard_DS3_v2", 1, 2),
        ("Standard_DS3_v2", 10, 12),
        ("Standard_NC4as_T4_v3", 5, 6),
        ("Standard_NC40ads_H100_v5", 1, 1),
        ("STANDARD_NC24ADS_A100_V4", 3, 3),
        ("Standard_ND96isr_H100_v5", 2, 2),
    ],
)
def test_quota_has_room_for_what_azure_keeps_for_upgrades(size: str, count: int, counted: int):
    assert machines_counted(Size(size, "f", 4, {}), count) == counted


@pytest.mark.parametrize(
    ("own", "kind", "says"),
    [
        ("400", StageError, "refuses the request (400): prompt is empty"),
        ("429", Busy, "the endpoint is busy: prompt is empty"),
        ("503", NotAnswering, "nothing behind the endpoint takes requests (503)"),
        ("500", StageError, "the endpoint failed (500): prompt is empty"),
        ("", StageError, "the endpoint failed (424): prompt is empty"),
        ("x", StageError, "the endpoint failed (424): prompt is empty"),
    ],
)
def test_a_424_is_read_as_what_the_models_own_server_said(own: str, kind: type[StageError], says: str):
    asked = 0

    class Gateway(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal asked
            asked += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"error": {"message": "prompt is empty"}}'
            self.send_response(424)
            for name, value in (("ms-azureml-model-error-statuscode", own), ("Retry-After", "0")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(kind) as caught:
            score(f"http://127.0.0.1:{server.server_port}/score", {"prompt": ""}, timeout_s=30)
        server.shutdown()
    assert says in caught.value.what
    assert asked == (TRIES if own == "429" else 1), "what is busy is asked again, and nothing else"
