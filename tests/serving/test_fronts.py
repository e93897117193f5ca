"""Several processes of score.py before one vLLM, which a double stands for; all are real, and killed by turns."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from helpers.command import REPOSITORY
from helpers.endless import ENDLESS, make_endless
from helpers.processes import belonging, gone

from ftkit.errors import StageError
from ftkit.platforms.local import endpoint as local_endpoint
from ftkit.platforms.local.endpoint import Endpoint
from ftkit.serving.endpoint.adapter_effect import Effect
from ftkit.serving.endpoint.board import FOLDERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("vllm") is not None, reason="the real one would be started"),
]

MOST = 3
"""Requests of the instance at a time."""


def start(model_dir: Path, state_dir: Path, **changed: Any) -> Endpoint:
    return local_endpoint.start(
        **{"endpoint_name": "fronts", "deployment_name": "blue", "model": "tiny:1", "port": 0},
        **{"model_dir": model_dir, "state_dir": state_dir, "variables": {"FTKIT_ENGINE": "vllm"}},
        **{"startup_timeout_s": 300, "request_timeout_ms": 60_000, "max_concurrent_requests": MOST},
        **{"front_processes": 2, "progress": lambda _line: None} | changed,
    )


@pytest.fixture(scope="module")
def endless(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("registered")
    shutil.copytree(tiny, parent / "merged")
    make_endless(parent / "merged")
    return parent


@pytest.fixture(scope="module")
def fronts(path: Path, endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    endpoint = start(endless, tmp_path_factory.mktemp("endpoints"))
    yield endpoint
    local_endpoint.stop(endpoint)


def workers(endpoint: Endpoint) -> list[psutil.Process]:
    return psutil.Process(endpoint.pid).children()


def supervisors(endpoint: Endpoint) -> list[psutil.Process]:
    return [each for each in belonging(Path(endpoint.folder)) if "vllm_supervisor" in each.cmdline()[2]]


def engines(endpoint: Endpoint) -> list[psutil.Process]:
    words = ("vllm_double.py", "vllm_light.py")
    return [each for each in belonging(Path(endpoint.folder)) if Path(each.cmdline()[1]).name in words]


def post(endpoint: Endpoint, most: int = 3) -> httpx.Response:
    body = {"prompt": "1足す1は？", "max_new_tokens": most}
    return httpx.post(endpoint.scoring_uri, json=body, timeout=60, trust_env=False)


def until(endpoint: Endpoint, status: int) -> None:
    """Wait until health is answered so."""
    while health(endpoint) != status:
        pause(endpoint)


def health(endpoint: Endpoint) -> int:
    """The status of its health; 0 if the process that was asked ended."""
    try:
        return httpx.get(endpoint.health_uri, timeout=60, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def pause(endpoint: Endpoint) -> None:
    """Leave the cores to those that are awaited, if they can still come."""
    assert psutil.pid_exists(endpoint.pid)
    time.sleep(0.1)


def shared_folders(pid: int) -> list[Path]:
    return [*Path(tempfile.gettempdir()).glob(f"{FOLDERS}{pid}-*")]


def log_of(endpoint: Endpoint) -> str:
    return Path(endpoint.log).read_text(encoding="utf-8")


@contextmanager
def answered_by(endpoint: Endpoint, front: psutil.Process) -> Iterator[None]:
    """Connections within the block go to this process."""
    others = [each for each in workers(endpoint) if each != front]
    for other in others:
        other.suspend()
    try:
        yield
    finally:
        for other in others:
            other.resume()


class Stream:
    """An answer that has begun and goes on for long; or a refusal."""

    def __init__(self, endpoint: Endpoint, opened: ExitStack):
        client = opened.enter_context(httpx.Client(timeout=60, trust_env=False))
        answer = opened.enter_context(client.stream("POST", endpoint.scoring_uri, json=ENDLESS))
        self.status, self.pieces = answer.status_code, answer.iter_raw()
        self.first = next(self.pieces)


def test_each_of_them_answers_by_the_one_vllm(fronts: Endpoint):
    assert len(workers(fronts)) == 2 and len(engines(fronts)) == 1 and len(supervisors(fronts)) == 1
    for front in workers(fronts):
        with answered_by(fronts, front):
            assert post(fronts).json()["usage"]["completion_tokens"] == 3
            assert httpx.get(fronts.health_uri, timeout=60, trust_env=False).status_code == 200


def test_the_limit_is_the_instances_and_who_is_killed_gives_his_places_back(fronts: Endpoint):
    """The one that had vLLM started is killed: the other answers on, and vLLM stays.

    Guards: Places.take, which counts those of all; _give_back_of_the_dead.
    """
    (engine,), (supervisor,) = engines(fronts), supervisors(fronts)
    first = psutil.Process(supervisor.ppid())
    (second,) = {*workers(fronts)} - {first}
    loaded = log_of(fronts).count("loaded in")
    with ExitStack() as opened:
        with answered_by(fronts, first):
            held = [Stream(fronts, opened) for _ in range(MOST - 1)]
        with answered_by(fronts, second):
            held.append(Stream(fronts, opened))
            assert [answer.status for answer in held] == [200] * MOST
            refused = post(fronts)
        assert refused.status_code == 429 and "3 requests are being answered" in refused.text
        first.kill()
        first.wait(60)
        for _ in range(MOST - 1):
            held.append(Stream(fronts, opened))
        assert [answer.status for answer in held] == [200] * (2 * MOST - 1)
        assert post(fronts).status_code == 429 and health(fronts) == 200
    while log_of(fronts).count("loaded in") == loaded:
        pause(fronts)
    while post(fronts).status_code == 429:  # until it is seen that their clients are gone
        pause(fronts)
    assert second in workers(fronts) and len(workers(fronts)) == 2
    assert engines(fronts) == [engine] and supervisors(fronts) == [supervisor]


def test_with_what_watches_it_vllm_ends_and_both_are_started_again(fronts: Endpoint):
    (engine,), (supervisor,) = engines(fronts), supervisors(fronts)
    supervisor.kill()
    gone(supervisor)
    gone(engine)
    for status in (503, 200):
        until(fronts, status)
    assert len(engines(fronts)) == len(supervisors(fronts)) == 1
    assert post(fronts).status_code == 200


def test_a_vllm_that_is_killed_is_started_again_once_and_all_its_clients_told(fronts: Endpoint, path: Path):
    ends = log_of(fronts).count("vLLM ended by itself")
    with ExitStack() as opened:
        held = []
        for front in workers(fronts):
            with answered_by(fronts, front):
                held.append(Stream(fronts, opened))
        (path / "dies").touch()
        for answer in held:
            assert "the model failed; the log says why" in b"".join(answer.pieces).decode()
    for status in (503, 200):
        until(fronts, status)
    assert len(engines(fronts)) == len(supervisors(fronts)) == 1
    for front in workers(fronts):
        with answered_by(fronts, front):
            assert post(fronts).status_code == 200
    assert log_of(fronts).count("vLLM ended by itself") == ends + 1


def test_teardown_leaves_nothing_of_them_whoever_was_replaced(fronts: Endpoint):
    """Last: the others need it. The process that watches vLLM has lost the one that had it started."""
    (supervisor,) = supervisors(fronts)
    psutil.Process(supervisor.ppid()).kill()  # another one may just be coming in its place
    assert shared_folders(fronts.pid)
    local_endpoint.stop(fronts)
    assert not belonging(Path(fronts.folder)) and not shared_folders(fronts.pid)


@pytest.fixture
def light(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model with an adapter, and a vLLM that loads nothing, where the adapter does what it did in training."""
    (tmp_path / "bin").mkdir()
    script, stand_in = tmp_path / "bin" / "vllm", REPOSITORY / "tests" / "helpers" / "vllm_light.py"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VLLM_LIGHT_LOG", str(tmp_path / "asked"))
    shutil.copytree(tiny, tmp_path / "registered" / "merged")
    adapter = tmp_path / "registered" / "merged" / "adapters" / "ja"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 4}), encoding="utf-8")
    Effect([[1, 2, 3], [4, 5]], [[-1, -1], [-1]], {"whole": [[-2, -2], [-2]]}).write(adapter / "effect.json")
    yield tmp_path / "registered"
    for endpoint in local_endpoint.list_endpoints(tmp_path):
        local_endpoint.stop(endpoint)


def test_a_start_that_fails_is_told_once_and_leaves_nothing(
    light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VLLM_LIGHT_ERROR", "torch.OutOfMemoryError: CUDA out of memory.")
    with pytest.raises(StageError) as error:
        start(light, tmp_path)
    why = "vLLM ended as it started (status 1): torch.OutOfMemoryError: CUDA out of memory."
    assert error.value.what == f"the server did not start: {why}"
    log = Path(error.value.where).read_text(encoding="utf-8")
    told = r" E \[\d+\] azmlinfsrv - User's init function failed|\[ERROR\] Exception in worker process"
    assert len(re.findall(told, log)) == 1
    assert not belonging(tmp_path)


def test_a_tokenizer_that_cannot_be_used_is_told_and_leaves_nothing(light: Path, tmp_path: Path):
    """vLLM has been started by then."""
    (light / "merged" / "chat_template.jinja").unlink()
    with pytest.raises(StageError) as error:
        start(light, tmp_path)
    assert error.value.what == f"the server did not start: {light / 'merged'} holds no chat template"
    assert not belonging(tmp_path)


def test_adapters_are_tried_once_and_at_the_fourth_end_all_begin_anew(light: Path, tmp_path: Path):
    endpoint = start(light, tmp_path)
    asked = (tmp_path / "asked").read_text(encoding="utf-8").split()
    assert sorted(asked) == ["ja", "ja", "merged", "merged"]
    assert log_of(endpoint).count("adapter ja: as trained: ") == 1
    before = workers(endpoint)
    for _ in range(4):
        (engine,) = engines(endpoint)
        engine.kill()
        gone(engine)
        while health(endpoint) != 200 or not engines(endpoint):
            pause(endpoint)
    assert "that was too often; this process ends" in log_of(endpoint)
    for front in before:
        gone(front)
    assert len(engines(endpoint)) == len(supervisors(endpoint)) == 1 and post(endpoint, 1).status_code == 200
