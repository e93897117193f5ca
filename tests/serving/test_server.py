"""score.py as an endpoint runs it: asked over HTTP."""

from __future__ import annotations

import json
import select
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ftkit.data.conversations import Conversation
from ftkit.data.harmony import checked_harmony
from ftkit.errors import StageError
from ftkit.platforms.local_endpoint import Endpoint
from ftkit.serving import client, score
from ftkit.serving.endpoint.model import Served, find_model
from ftkit.serving.endpoint.requests import Limits, ModelError, parse_request

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
            connection.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
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


@pytest.mark.parametrize("begun", ["GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", "POST /sc"])
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


def test_clients_that_do_not_close_their_connection_keep_nobody_waiting(endpoint: Endpoint):
    """Guard: _linger in PromptWorker.handle; gunicorn's main loop would wait for two seconds for each of them."""
    with ExitStack() as stack:
        kept = [stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port))) for _ in range(10)]
        for connection in kept:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for connection in kept:  # all are answered and none is closed
            assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        assert httpx.get(endpoint.health_uri, timeout=10, trust_env=False).status_code == 200


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


def test_the_prompt_is_the_trainings_token_for_token(model_dir: Path, tokenizer):
    served = Served(find_model(model_dir), Limits())
    request = parse_request(json.dumps({"prompt": QUESTION}), served.limits, served.trained)
    asked = served.prompt_ids(request)
    answered = [*request.messages, {"role": "assistant", "content": "キャンベラです。"}]
    rows = checked_harmony(tokenizer, current_date="2026-01-01").token_rows([Conversation(1, answered, "medium", {})])
    assert list(asked) == rows.input_ids[: rows.prompt_length[0]].tolist()
    assert "Current date: 2026-01-01" in tokenizer.decode(asked)


def test_the_model_folder_is_found_deep_down_and_folders_inside_it_do_not_count(tmp_path: Path):
    model = tmp_path / "1" / "content" / "merged"
    for folder in (model, model / "original"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert find_model(tmp_path) == model
    assert find_model(model) == model
