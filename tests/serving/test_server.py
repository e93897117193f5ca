"""score.py as an endpoint runs it: asked over HTTP."""

from __future__ import annotations

import json
import resource
import select
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flask import Request
from werkzeug.test import create_environ

from ftkit.chat.messages import ModelError
from ftkit.errors import StageError
from ftkit.platforms.local.endpoint import Endpoint
from ftkit.processes import within
from ftkit.serving import client, log_files, score
from ftkit.serving.endpoint.limits import SPARE_THREADS, Limits
from ftkit.serving.endpoint.loading import find_model
from ftkit.serving.endpoint.refusals import Refused
from ftkit.serving.endpoint.requests import Rules

QUESTION = "オーストラリアの首都はどこですか？"
CHAT_PAYLOAD = {
    "messages": [
        {"role": "system", "content": "reasoning language: Japanese"},
        {"role": "user", "content": QUESTION},
    ],
    "max_new_tokens": 500,
}


@pytest.fixture
def ask(endpoint: Endpoint):
    return lambda **payload: client.score(endpoint.scoring_uri, payload, timeout_s=60, log=endpoint.log)


def post(endpoint: Endpoint, content: Any) -> httpx.Response:
    return httpx.post(endpoint.scoring_uri, content=content, timeout=60, trust_env=False)


def test_a_chat_is_answered_and_ends_by_itself(ask):
    answer = ask(**CHAT_PAYLOAD)
    assert answer["finish_reason"] == "stop"
    assert answer["output"]
    assert answer["thinking"]
    assert "<|" not in answer["output"] + answer["thinking"]
    assert answer["usage"]["completion_tokens"] < 500


def test_a_raw_prompt_is_asked_as_in_training(ask):
    bare = {"messages": [{"role": "user", "content": QUESTION}]}
    assert ask(prompt=QUESTION) == ask(**CHAT_PAYLOAD)
    assert ask(prompt=QUESTION)["usage"]["prompt_tokens"] > ask(**bare)["usage"]["prompt_tokens"]


def test_an_answer_that_is_cut_off_says_so(ask):
    answer = ask(prompt=QUESTION, max_new_tokens=3)
    assert (answer["output"], answer["finish_reason"]) == ("", "length")
    assert answer["usage"]["completion_tokens"] == 3
    assert "max_new_tokens=3" in answer["note"]


def test_stop_ends_the_output_before_the_text(ask):
    whole = ask(prompt=QUESTION)["output"]
    answer = ask(prompt=QUESTION, stop=[whole[2:]])
    assert (answer["output"], answer["finish_reason"]) == (whole[:2], "stop")


def test_the_same_seed_gives_the_same_sample(ask):
    hot = {"prompt": QUESTION, "temperature": 1.5, "top_p": 0.95, "max_new_tokens": 24}
    texts = [json.dumps(ask(**hot, seed=seed)) for seed in (5, 5, 6, 7, 8)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"{", ""),
        (b'{"prompt": "a", "temperature": NaN}', "temperature"),
        (b'{"prompt": "<|return|>"}', "prompt"),
        (json.dumps({"prompt": "な" * 3000}).encode(), "prompt"),
        (b'{"prompt": "\xff"}', ""),
        (json.dumps({"messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode(), ""),
    ],
    ids=["not JSON", "NaN", "special token", "too many tokens", "not UTF-8", "10 MB"],
)
def test_a_bad_request_gets_a_4xx_and_the_server_goes_on(endpoint: Endpoint, content: bytes, field: str):
    answer = post(endpoint, content)
    assert answer.status_code == (413 if len(content) > 1_000_000 else 400)
    assert answer.json()["error"]["field"] == field
    assert answer.json()["error"]["message"]
    assert httpx.get(endpoint.health_uri, trust_env=False).status_code == 200


@pytest.mark.parametrize("framing", ["Content-Length: 5000", "Transfer-Encoding: chunked"])
def test_clients_whose_body_comes_slowly_keep_nobody_waiting_and_are_turned_away(endpoint: Endpoint, ask, framing: str):
    """More of them than the requests that are answered at a time."""
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port))) for _ in range(100)]
        for connection in slow:
            connection.sendall(f"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\n{framing}\r\n\r\n".encode())
        asked = pool.submit(ask, prompt=QUESTION)
        turned_away: list[bytes] = []
        while slow:
            answered, _, _ = select.select(slow, [], [], 0.1)
            for connection in answered:
                turned_away.append(connection.makefile("rb").read())
                slow.remove(connection)
            for connection in slow:
                with suppress(OSError):  # it may be being closed
                    connection.sendall(b"1\r\n{\r\n")
            assert asked.done() or not turned_away  # the answer comes long before their time is up
    assert asked.result()["finish_reason"] == "stop"
    for answer in turned_away:
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not come whole within 4 s" in answer


@pytest.mark.parametrize("begun", ["GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ", "POST /sc"])
def test_clients_whose_headers_come_slowly_keep_nobody_waiting_and_are_turned_away(endpoint: Endpoint, begun: str):
    """More of them than the requests that are answered at a time. Guard: PromptWorker.notify."""
    until, turned_away = time.monotonic() + 60, []
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port))) for _ in range(100)]
        for connection in slow:
            connection.sendall(begun.encode())
        assert httpx.get(endpoint.health_uri, trust_env=False).status_code == 200
        assert not select.select(slow, [], [], 0)[0]  # they were all waiting still
        while slow and time.monotonic() < until:
            for connection in select.select(slow, [], [], 0.1)[0]:
                turned_away.append(connection.makefile("rb").read())
                slow.remove(connection)
            for connection in slow:
                with suppress(OSError):  # it may be being closed
                    connection.sendall(b"a")
    assert not slow
    assert {answer.partition(b"\r\n")[0] for answer in turned_away} == {b"HTTP/1.1 408 Request Timeout"}


def test_two_thousand_slow_clients_leave_health_and_questions_answered(endpoint: Endpoint, ask):
    """Guard: PromptWorker collects requests in its loop; with a thread for each, there would be none left."""
    begun = (
        b"GET / HTTP/1.1\r\nX-Slow: ",
        b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{",
        b"",
    )
    with ExitStack() as stack, more_files(4096) as files:
        slow = []
        for i in range(min(2000, files - 256)):
            slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port))))
            slow[-1].sendall(begun[i % 3])
        assert httpx.get(endpoint.health_uri, trust_env=False, timeout=30).status_code == 200
        poll = select.poll()
        for connection in slow:
            poll.register(connection, select.POLLIN)
        turned_away = {descriptor for descriptor, _ in poll.poll(0)}
        assert len(slow) - len(turned_away) > endpoint.max_concurrent_requests + SPARE_THREADS
        assert ask(prompt=QUESTION, max_new_tokens=2)["usage"]["completion_tokens"] == 2


@contextmanager
def more_files(count: int) -> Iterator[int]:
    """Let this process open so many files, or as many as the system allows; yields how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = max(soft, min(count, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (now, hard))
    yield now
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_does_not_read_its_answers_is_given_up(endpoint: Endpoint):
    """Guard: limit_sending in PromptWorker.accept; its thread would wait for it, and nobody read what it asks next."""
    asking = b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"a" * 4000 + b"\r\n\r\n"
    with socket.socket() as connection:
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            connection.setsockopt(socket.SOL_SOCKET, buffer, 4096)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # with which the server's buffer is small too
        connection.settimeout(30)
        connection.connect(("127.0.0.1", endpoint.port))
        with suppress(ConnectionError):  # it may be closed already
            connection.sendall(asking * 500)


def test_under_another_server_too_a_send_ends_that_is_not_read(monkeypatch: pytest.MonkeyPatch):
    """Guard: limit_sending in score.py, which a managed endpoint runs under gunicorn's own worker."""
    limits = Limits(send_timeout_ms=20)
    monkeypatch.setattr(score, "_served", SimpleNamespace(limits=limits, rules=Rules(limits)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        asked = {"gunicorn.socket": ours} | create_environ("/score", method="POST")
        with pytest.raises(Refused, match="is empty"):
            score._answer(Request(asked))
        with within(30), pytest.raises(BlockingIOError):
            ours.sendall(b"a" * 10_000_000)


def test_a_log_that_has_become_long_is_cut_while_the_server_writes_to_it(endpoint: Endpoint):
    """Guard: rotate in PromptWorker.notify."""
    log, until = Path(endpoint.log), time.monotonic() + 60
    with log.open("r+b") as file:
        file.truncate(log_files.LONGEST + 1)
    while log.stat().st_size > log_files.LONGEST and time.monotonic() < until:
        assert httpx.get(endpoint.health_uri, trust_env=False).status_code == 200
    assert log.stat().st_size < log_files.LONGEST < Path(f"{log}.1").stat().st_size


def test_a_client_cannot_say_where_the_application_lies(endpoint: Endpoint):
    """Guard: no forwarder-headers for gunicorn, which takes these from any client of this machine."""
    assert call(endpoint, "GET", "/score", headers={"SCRIPT_NAME": "/elsewhere"}).status_code == 200


def test_clients_that_do_not_close_their_connection_keep_nobody_waiting(endpoint: Endpoint):
    """Guard: _linger in PromptWorker.handle; gunicorn's main loop would wait for two seconds for each of them."""
    with ExitStack() as stack:
        kept = [stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port))) for _ in range(10)]
        for connection in kept:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        for connection in kept:  # all are answered and none is closed
            assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        assert httpx.get(endpoint.health_uri, timeout=10, trust_env=False).status_code == 200


def call(endpoint: Endpoint, method: str, path: str, **options: Any) -> httpx.Response:
    uri = endpoint.scoring_uri.replace("/score", path)
    return httpx.request(method, uri, timeout=60, trust_env=False, **options)


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": "tiny"}])
def test_openais_path_speaks_openais_format_whatever_the_body_says(endpoint: Endpoint, body: dict[str, Any]):
    body = body | {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
    answer = call(endpoint, "POST", "/v1/chat/completions", json=body).json()
    assert (answer["object"], answer["model"], answer["choices"][0]["finish_reason"]) == (
        "chat.completion",
        "tiny",
        "length",
    )
    refused = call(endpoint, "POST", "/v1/chat/completions", json=body | {"max_new_tokens": 5})
    assert refused.json()["error"] | {"param": "max_new_tokens", "code": "unknown_parameter"} == refused.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("POST", "/v1/chat/completion", 404, "did you mean /v1/chat/completions"),
        ("POST", "/chat/completions", 404, "did you mean /v1/chat/completions"),
        ("POST", "/v1/completions", 404, "deployment=vllm takes it"),
        ("GET", "/v1/responses/resp_1", 404, "keeps no responses"),
        ("GET", "/v1/responses", 405, "takes POST, not GET"),
        ("GET", "/v1/models/tinny", 404, "did you mean tiny"),
        ("GET", "/nothing", 404, "POST /score"),
        ("GET", "/v1/chat/completions", 405, "takes POST, not GET"),
        ("DELETE", "/score", 405, "takes POST and GET, not DELETE"),
        ("POST", "/", 404, "POST /score"),
    ],
)
def test_what_is_not_there_is_said_in_openais_shape(endpoint: Endpoint, method: str, path: str, status: int, says: str):
    answer = call(endpoint, method, path)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_models_are_listed_and_told_one_by_one(endpoint: Endpoint):
    (listed,) = call(endpoint, "GET", "/v1/models").json()["data"]
    assert call(endpoint, "GET", "/v1/models/tiny").json() == listed


@pytest.mark.parametrize("chunk", ["-5", "0x25", "2_5", "zz"])
def test_broken_chunks_are_a_bad_request(endpoint: Endpoint, chunk: str):
    head = "POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", endpoint.port)) as connection:
        connection.sendall(f"{head}{chunk}\r\n{{}}\r\n0\r\n\r\n".encode())
        assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 400"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_pages_of_others_are_refused(endpoint: Endpoint, headers: dict[str, str]):
    """Guard: OwnHostsAlone in local_app."""
    answer = call(endpoint, "POST", "/score", headers=headers, json={"prompt": "a", "max_new_tokens": 1})
    assert answer.status_code == 403
    assert "deployment." in answer.json()["error"]["message"]


def test_the_client_names_field_and_cure_of_a_refused_request(ask):
    with pytest.raises(StageError, match="did you mean max_new_tokens") as refused:
        ask(prompt="a", max_tokens=5)
    assert refused.value.where == "max_tokens"


def break_config(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "another")


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lose_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


def index_of_missing(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no folder with a config.json"),
    "two models": (break_config, "several models (another, merged)"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a part of the weights missing": (index_of_missing, "model-00002-of-00002.safetensors is missing"),
    "truncated weights": (cut_weights, "truncated or damaged"),
    "a tensor missing": (lose_a_tensor, "missing keys: model.norm.weight"),
    "no chat template": (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    "ftkit.json damaged": (lambda folder: (folder / "ftkit.json").write_text("{"), "ftkit.json cannot be read"),
}


@pytest.mark.parametrize(("damage", "says"), BROKEN.values(), ids=BROKEN)
def test_a_model_that_is_not_whole_gives_one_clear_line(
    model_dir: Path, tmp_path: Path, monkeypatch, damage, says: str
):
    shutil.copytree(model_dir / "merged", tmp_path / "merged")
    damage(tmp_path / "merged")
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path))
    with pytest.raises(ModelError) as error:
        score.init()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_model_folder_is_found_deep_down_and_folders_inside_it_do_not_count(tmp_path: Path):
    model = tmp_path / "1" / "content" / "merged"
    for folder in (model, model / "original"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert find_model(tmp_path) == model
    assert find_model(model) == model
