"""Who may ask the local endpoint, and what its processes inherit, without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from ftkit.platforms.local import server_processes
from ftkit.platforms.local.endpoint import Endpoint
from ftkit.serving.local_guard import HOSTS, ORIGINS, OwnHostsAlone


def asked(environment: dict[str, str], **headers: str) -> int:
    """The status that a request with these headers gets."""

    def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b""]

    given = {"Host": "127.0.0.1:5001", **headers}
    return Client(OwnHostsAlone.of(application, environment)).get("/", headers=given).status_code


@pytest.mark.parametrize("host", ["127.0.0.1:5001", "localhost", "[::1]:80", "LOCALHOST.:5001"])
def test_this_machine_may_ask(host: str):
    assert asked({}, Host=host) == asked({}, Host=host, Origin=f"http://{host}") == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "127.0.0.2"])
def test_a_page_whose_name_was_bound_to_this_machine_may_not(host: str):
    """Guard: hosts in OwnHostsAlone."""
    assert asked({}, Host=host) == 403
    assert asked({HOSTS: f"other, {host.partition(':')[0]}"}, Host=host) == asked({HOSTS: "*"}, Host=host) == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_a_page_from_elsewhere_may_not(origin: str):
    """Guard: origins in OwnHostsAlone."""
    assert asked({}, Origin=origin) == 403
    assert asked({ORIGINS: origin}, Origin=origin) == asked({ORIGINS: "*"}, Origin=origin) == 200


def test_a_server_is_started_with_what_it_needs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guards: _NEEDED_VARIABLES and _SECRET. What is started here in the server's place prints its environment."""
    for name in (
        "DATABASE_URL",
        "GITHUB_PAT",
        "https_proxy",
        "PIP_INDEX_URL",
        "HF_TOKEN",
        "VLLM_API_KEY",
        "FTKIT_TOKEN",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    endpoint = Endpoint(
        **{"endpoint_name": "e", "deployment_name": "blue", "model": "m:1", "model_dir": str(tmp_path), "port": 1},
        **{"folder": str(tmp_path), "startup_timeout_s": 1, "request_timeout_ms": 1, "max_concurrent_requests": 1},
    )
    endpoint = replace(endpoint, log=str(tmp_path / "log"), variables={"MY_OWN": "1"})
    server_processes._detached(["env"], endpoint).wait(60)
    inherited = dict(line.split("=", 1) for line in Path(endpoint.log).read_text().splitlines())
    assert "secret" not in inherited.values()
    assert (inherited["HF_HOME"], inherited["MY_OWN"]) == (str(tmp_path / "hub"), "1")
