"""Endpoints on this machine: started, found, replaced and stopped, with the real server."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import pytest
from helpers.endless import ENDLESS, make_endless
from helpers.marks import needs_azures_server

from ftkit.assets import asset_path
from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.packages import install_command
from ftkit.pipeline.lineage import folder_of
from ftkit.platforms.local import endpoint as local_endpoint
from ftkit.platforms.local.endpoint import Endpoint, find, list_endpoints, stop
from ftkit.platforms.local.platform import Local
from ftkit.serving import client

STARTER = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from ftkit.platforms.local import endpoint as local_endpoint
from ftkit.processes import keeping_ctrl_c
options = json.loads(sys.argv[1])
options |= {name: Path(options[name]) for name in ("model_dir", "state_dir")}
with keeping_ctrl_c():  # as ftkit's command does
    started = local_endpoint.start(**options, progress=lambda line: print(line, flush=True))
print(json.dumps(asdict(started)))
"""
"""A command of its own that starts an endpoint and ends."""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Arguments of ``start``; whatever they started is stopped in the end."""
    state = tmp_path_factory.mktemp("outputs") / "_workspace" / "endpoints"
    parent = tmp_path_factory.mktemp("registered")
    shutil.copytree(asset_path("package:tiny-gpt-oss"), parent / "merged")
    make_endless(parent / "merged")
    yield {
        **{"endpoint_name": "kept", "deployment_name": "blue", "model": "tiny:1", "port": 0},
        **{"model_dir": str(parent), "state_dir": str(state)},
        **{"variables": {"FTKIT_MODEL": "tiny", "MY_OWN": "1"}},
        **{"startup_timeout_s": 120, "request_timeout_ms": 60_000, "max_concurrent_requests": 2},
    }
    for endpoint in list_endpoints(state):
        stop(endpoint)


@pytest.fixture(scope="module")
def start(options: dict[str, Any]) -> Callable[..., Endpoint]:
    def started(progress: Callable[[str], None] = lambda _line: None, **changed: Any) -> Endpoint:
        given = options | changed
        given |= {name: Path(given[name]) for name in ("model_dir", "state_dir")}
        return local_endpoint.start(**given, progress=progress)

    return started


PRIVATE = (
    *("HF_TOKEN", "DATABASE_URL", "GITHUB_PAT", "SSH_PRIVATE_KEY", "MYSQL_PWD", "SMTP_PASS", "PIP_INDEX_URL"),
    *("https_proxy", "REDIS_URI", "VLLM_API_KEY", "FTKIT_TOKEN", "AZURE_CLIENT_SECRET", "AML_CORS_ORIGINS", "ANYTHING"),
)


def command(options: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, json.dumps(options)],
        env=os.environ
        | dict.fromkeys(PRIVATE, "secret")
        | {"GUNICORN_CMD_ARGS": "--bind 0.0.0.0:0", "AML_APP_ROOT": "/nowhere"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def kept(options: dict[str, Any]) -> Endpoint:
    """An endpoint whose command has ended."""
    with command(options) as starting:
        said = starting.communicate(timeout=120)[0].splitlines()
    assert starting.returncode == 0
    return Endpoint(**json.loads(said[-1]))


def ask(endpoint: Endpoint, **payload: Any) -> dict[str, Any]:
    return client.score(endpoint.scoring_uri, {"prompt": "1足す1は？", "max_new_tokens": 3} | payload, timeout_s=60)


def state(options: dict[str, Any]) -> Path:
    return Path(options["state_dir"])


def is_running(token: str) -> bool:
    return any(token in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def test_it_outlives_its_command_in_a_session_of_its_own(kept: Endpoint, options: dict[str, Any]):
    assert find(state(options), "kept") == kept
    assert list_endpoints(state(options)) == [kept]
    assert os.getsid(kept.pid) == kept.pid
    assert kept.traffic == {"blue": 100}
    assert ask(kept)["usage"]["completion_tokens"] == 3


def test_it_listens_on_the_loopback_alone(kept: Endpoint):
    master = psutil.Process(kept.pid)
    family = [master, *master.children(recursive=True)]
    listening = {tuple(c.laddr) for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", kept.port)}


def test_it_inherits_neither_secrets_nor_other_servers_settings(kept: Endpoint):
    environment = psutil.Process(kept.pid).environ()
    assert not {*PRIVATE, "GUNICORN_CMD_ARGS"} & environment.keys()
    assert environment["AML_APP_ROOT"] == kept.folder
    assert environment["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]
    assert (environment["FTKIT_MODEL"], environment["MY_OWN"]) == ("tiny", "1")


def test_while_requests_run_health_is_answered_and_those_too_many_are_turned_away(kept: Endpoint):
    body = {"prompt": "1足す1は？", "max_new_tokens": 250}

    def post(_: int) -> httpx.Response:
        return httpx.post(kept.scoring_uri, json=body, timeout=60, trust_env=False)

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(post, i) for i in range(3)]
        first, others = wait(asked, return_when=FIRST_COMPLETED)  # two are taken; the refusal comes before any answer
        healthy = httpx.get(kept.health_uri, timeout=60, trust_env=False)
        still_running = [future for future in others if not future.done()]
    turned_away = first.pop().result()
    assert (turned_away.status_code, "retry-after" in turned_away.headers) == (429, True)
    assert healthy.status_code == 200
    assert len(still_running) == 2
    assert [future.result().status_code for future in others] == [200, 200]


def hang_up(kept: Endpoint, payload: dict, *, read_first: bool) -> None:
    """Send a request and close the connection, with a reset, before the answer is there."""
    body = json.dumps(payload).encode()
    head = f"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", kept.port)) as connection:
        connection.sendall(head + body)
        if read_first:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("stream", [True, False])
def test_when_the_client_goes_its_request_is_given_up(kept: Endpoint, stream: bool):
    log = Path(kept.log)
    before = log.read_text().count("was given up")
    hang_up(kept, ENDLESS | {"stream": stream}, read_first=stream)
    while log.read_text().count("was given up") == before:
        assert httpx.get(kept.health_uri, trust_env=False).status_code == 200


def test_a_worker_that_is_killed_under_load_is_replaced_and_its_clients_told(kept: Endpoint):
    right = ask(kept, max_new_tokens=20)
    (worker,) = psutil.Process(kept.pid).children()

    def stream(begun: Event) -> None:
        client.score(kept.scoring_uri, ENDLESS, timeout_s=60, on_piece=lambda *_piece: begun.set())

    with ThreadPoolExecutor(2) as pool:
        events = [Event(), Event()]
        asked = [pool.submit(stream, begun) for begun in events]
        assert all(begun.wait(timeout=60) for begun in events)
        os.kill(worker.pid, signal.SIGKILL)
        for answer in asked:
            with pytest.raises(StageError, match="the request failed: RemoteProtocolError"):
                answer.result()
    while not (workers := psutil.Process(kept.pid).children()) or workers[0].pid == worker.pid:
        pass
    assert httpx.get(kept.health_uri, timeout=60, trust_env=False).text == "Healthy"
    assert ask(kept, max_new_tokens=20) == right


def test_each_of_two_instances_behind_the_port_answers_alone(start, kept: Endpoint):
    two = start(endpoint_name="two", instance_count=2)
    workers = psutil.Process(two.pid).children()
    assert len(workers) == 2
    for other in workers:
        other.suspend()
        assert ask(two) == ask(kept)
        assert httpx.get(two.health_uri, timeout=60, trust_env=False).text == "Healthy"
        other.resume()
    stop(two)
    assert not is_running(two.token)


def test_a_port_in_use_is_named_and_the_running_endpoint_left_alone(kept: Endpoint, start, options: dict[str, Any]):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(StageError, match=f"port {taken} is in use") as error:
            start(port=taken)
    assert "deployment.port=" in error.value.cure
    with pytest.raises(StageError, match="in use by the endpoint kept"):
        start(endpoint_name="another", port=kept.port)
    assert find(state(options), "kept") == kept


@pytest.mark.parametrize("missing", ["folder", "config", "weights"])
def test_a_missing_model_is_named_before_anything_starts(start, options: dict[str, Any], tmp_path: Path, missing: str):
    if missing != "folder":
        shutil.copytree(options["model_dir"], tmp_path / "model")
        (tmp_path / "model" / "merged" / {"config": "config.json", "weights": "model.safetensors"}[missing]).unlink()
    said: list[str] = []
    with pytest.raises(StageError) as error:
        start(endpoint_name="broken", model_dir=tmp_path / "model", progress=said.append)
    assert said == []
    assert str(tmp_path) in str(error.value)
    assert "stage=merge,register,deploy" in error.value.cure


@pytest.fixture
def unservable(options: dict[str, Any], tmp_path: Path) -> Path:
    """A model whose weights are whole, and which fails all the same when it is loaded."""
    shutil.copytree(options["model_dir"], tmp_path / "model")
    (tmp_path / "model" / "merged" / "chat_template.jinja").unlink()
    return tmp_path / "model"


def test_a_server_that_fails_to_load_tells_its_logs_reason(start, options: dict[str, Any], unservable: Path):
    with pytest.raises(StageError, match=r"did not start: .*holds no chat template") as error:
        start(endpoint_name="broken", model_dir=unservable)
    assert "holds no chat template" in Path(error.value.where).read_text()
    assert find(state(options), "broken") is None
    assert not is_running(Path(error.value.where).stem)


def test_on_the_same_port_a_failed_replacement_brings_the_old_one_back(
    kept: Endpoint, start, options, unservable: Path
):
    with pytest.raises(StageError, match="no chat template; tiny:1 is served again"):
        start(port=kept.port, model_dir=unservable, model="tiny:2")
    back = find(state(options), "kept")
    assert back is not None
    assert (back.port, back.model, back.model_dir) == (kept.port, "tiny:1", kept.model_dir)
    assert back.pid != kept.pid
    assert ask(back)["usage"]["completion_tokens"] == 3


def test_a_replacement_is_up_before_the_old_one_ends_and_that_finishes_what_it_was_asked(
    kept: Endpoint, start, options
):
    old = find(state(options), "kept")
    assert old is not None
    serving, answers = [], []

    def watch(_line: str) -> None:
        serving.append(find(state(options), "kept"))
        answers.append(pool.submit(ask, serving[-1], max_new_tokens=300))

    with ThreadPoolExecutor() as pool:
        new = start(progress=watch, model="tiny:2")
    assert serving == [old, new]  # as it starts, and as the old one is about to end
    assert [answer.result()["usage"]["completion_tokens"] for answer in answers] == [300, 300]
    assert find(state(options), "kept") == new
    assert not is_running(old.token)
    assert [path.name for path in Path(new.folder).glob("*.log")] == [f"{new.token}.log"]


def wait_for_server(starting: subprocess.Popen[str], starting_file: Path) -> None:
    while not (starting_file.exists() and json.loads(starting_file.read_text())["pid"]):
        assert starting.poll() is None


@pytest.mark.parametrize(("ended_by", "runs"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)])
def test_a_signal_while_it_starts_stops_what_was_started(options: dict[str, Any], ended_by: signal.Signals, runs: bool):
    """Guard: sigterm_as_ctrl_c in endpoint.start."""
    with command(options | {"endpoint_name": "interrupted"}) as starting:
        assert starting.stdout is not None
        log = starting.stdout.readline().split()[-1]
        if runs:
            wait_for_server(starting, state(options) / "interrupted" / "starting.json")
        starting.send_signal(ended_by)
        starting.communicate(timeout=60)
    assert starting.returncode != 0
    assert not is_running(Path(log).stem)
    assert not list((state(options) / "interrupted").glob("*.json"))


def test_a_server_whose_command_was_killed_is_cleared_away_by_the_next(options: dict[str, Any], start):
    with command(options | {"endpoint_name": "orphaned"}) as starting:
        assert starting.stdout is not None
        starting.stdout.readline()
        starting_file = state(options) / "orphaned" / "starting.json"
        wait_for_server(starting, starting_file)
        starting.kill()
        starting.communicate(timeout=60)
    orphan = Endpoint(**json.loads(starting_file.read_text()))
    assert is_running(orphan.token)
    assert find(state(options), "orphaned") is None
    named = [f"run.outputs={state(options).parents[1]}", "deployment.endpoint_name=orphaned"]
    config = resolve(["experiment=tiny", "stage=teardown", *named])
    (running,) = Local(config, folder_of(config)).running()  # what teardown shows and stops
    assert f"is loading tiny:1 at {orphan.scoring_uri}" in running.what

    def end_here(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(endpoint_name="orphaned", progress=end_here)
    assert not is_running(orphan.token)
    assert find(state(options), "orphaned") is None


def test_a_stranger_with_the_old_number_is_left_alone(tmp_path: Path):
    sleeper = [sys.executable, "-c", "input()"]
    with subprocess.Popen(sleeper, stdin=subprocess.PIPE, start_new_session=True) as stranger:
        folder = tmp_path / "gone"
        folder.mkdir()
        gone = Endpoint(
            **{"endpoint_name": "gone", "deployment_name": "blue", "model": "m:1", "model_dir": "", "port": 1},
            **{"folder": str(folder), "pid": stranger.pid, "token": "ftkit-gone-0123"},
            **{"startup_timeout_s": 1, "request_timeout_ms": 1, "max_concurrent_requests": 1},
        )
        (folder / "endpoint.json").write_text(json.dumps(asdict(gone)))
        assert find(tmp_path, "gone") is None
        assert list_endpoints(tmp_path) == []
        assert stop(gone) is False
        assert stop(replace(gone, token="")) is False
        assert stranger.poll() is None
        stranger.kill()


def test_a_state_file_that_is_no_such_thing_is_named(tmp_path: Path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "endpoint.json").write_text("{}")
    with pytest.raises(StageError, match="cannot be read") as error:
        find(tmp_path, "odd")
    assert error.value.where.endswith("endpoint.json")


def test_two_deployments_at_once_do_not_get_in_each_others_way(start, options: dict[str, Any]):
    inner: list[StageError] = []

    def meanwhile(_line: str) -> None:
        with pytest.raises(StageError, match="being deployed already") as error:
            start(endpoint_name="twice")
        inner.append(error.value)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(endpoint_name="twice", progress=meanwhile)
    assert inner
    assert find(state(options), "twice") is None


@needs_azures_server
def test_a_missing_package_is_named_with_the_command_that_installs_it(start, monkeypatch: pytest.MonkeyPatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "ftkit.packages.find_spec", lambda name: None if name == "azureml_inference_server_http" else real(name)
    )
    with pytest.raises(StageError, match="azureml_inference_server_http") as error:
        start()
    assert error.value.cure == install_command("serve")
