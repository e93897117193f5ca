"""What the client makes of the configuration, and of answers that are none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ftkit.config.schema import Invoke
from ftkit.errors import StageError
from ftkit.serving import client

KEY = "s3cr3t-k3y"


class Answering(BaseHTTPRequestHandler):
    """Answers every POST with what the test has put into ``server.answer``: status and body, or None for silence.

    Before that come the answers in ``server.first``, each 429 with a Retry-After.
    """

    def do_POST(self) -> None:
        self.server.asked = self.headers, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.count += 1
        if self.server.answer is None:
            self.server.released.wait(60)
            return
        status, body = self.server.answer
        if self.server.first:
            status, body = 429, b"{}"
        self.send_response(status)
        self.send_header("x-ms-request-id", "4711")
        if self.server.first:
            self.send_header("Retry-After", self.server.first.pop())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.released, server.count, server.first = threading.Event(), 0, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


def ask(server: ThreadingHTTPServer, timeout_s: float = 30, **options):
    uri = f"http://127.0.0.1:{server.server_address[1]}/score"
    return client.score(uri, {"prompt": "a"}, timeout_s=timeout_s, key=KEY, **options)


def test_the_answer_comes_back_and_the_key_is_sent(server):
    server.answer = (200, b'{"output": "\xe3\x81\x82"}')
    assert ask(server) == {"output": "あ"}
    headers, body = server.asked
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {"prompt": "a"}


def test_a_proxy_in_the_environment_is_not_asked_for_the_loopback(server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.answer = (200, b'{"output": "a"}')
    assert ask(server) == {"output": "a"}


@pytest.mark.parametrize(
    ("answer", "says", "where"),
    [
        ((400, b'{"error": {"message": "top_p is 3", "field": "top_p"}}'), "top_p is 3", "top_p"),
        ((400, b'{"message": "not UTF-8"}'), "not UTF-8", "http"),
        ((404, b"<html>"), "refuses the request (404)", "http"),
        ((401, b"{}"), "does not accept the key", "http"),
        ((429, b'{"error": {"message": "2 are running", "field": ""}}'), "busy: 2 are running", "http"),
        ((424, b'{"message": "in the script"}'), "failed (424): in the script", "log server.log"),
        ((500, b""), "failed (500)", "log server.log"),
        ((504, b""), "took too long", "http"),
        ((200, b"<html>"), "no JSON object", "http"),
        ((200, b"[]"), "no JSON object", "http"),
        ((302, b"{}"), "no JSON object", "http"),
    ],
)
def test_an_answer_that_is_none_is_explained(server, answer, says: str, where: str):
    server.answer = answer
    with pytest.raises(StageError) as error:
        ask(server, log="server.log")
    assert says in error.value.what
    assert error.value.where.startswith(where)
    assert KEY not in str(error.value)


def test_no_answer_in_time(server):
    server.answer = None
    with pytest.raises(StageError, match=r"no answer within 0\.2 s") as error:
        ask(server, timeout_s=0.2)
    assert "max_new_tokens" in error.value.cure


def test_a_busy_endpoint_that_says_how_long_is_asked_again(server):
    server.answer, server.first = (200, b'{"output": "a"}'), ["0.01", "0.02"]
    assert ask(server) == {"output": "a"}
    assert server.count == 3


@pytest.mark.parametrize("wait", ["3600", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_wait_that_is_too_long_or_unclear_is_left_to_the_user(server, wait: str):
    server.answer, server.first = (200, b"{}"), [wait]
    with pytest.raises(StageError, match="busy"):
        ask(server)
    assert server.count == 1


@pytest.mark.parametrize("answer", [(500, b""), (502, b""), (504, b""), (429, b"{}"), None])
def test_what_the_model_may_have_begun_is_not_sent_twice(server, answer):
    server.answer = answer
    with pytest.raises(StageError):
        ask(server, timeout_s=30 if answer else 0.2)
    assert server.count == 1


def test_an_endpoint_elsewhere_that_is_not_up_yet_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering, bind_and_activate=False)
    server.server_bind()  # and not listening yet: it stands for the proxy on the way to the endpoint
    server.answer, server.count, server.first = (200, b'{"output": "a"}'), 0, []
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_address[1]}")
    pauses = []

    def start(seconds: float) -> None:
        pauses.append(seconds)
        server.server_activate()
        threading.Thread(target=server.serve_forever, daemon=True).start()

    monkeypatch.setattr(client.time, "sleep", start)
    try:
        assert client.score("http://endpoint.invalid/score", {}, timeout_s=30) == {"output": "a"}
    finally:
        server.shutdown()
        server.server_close()
    assert pauses == [1.0] and server.count == 1


def test_the_requests_number_is_in_the_message(server):
    server.answer = (500, b"")
    with pytest.raises(StageError) as error:
        ask(server)
    assert error.value.where.endswith("/score, request 4711")


CHAT = {"choices": [{"message": {"content": "あ", "reasoning": "い"}, "finish_reason": "stop"}]}
USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def test_both_formats_are_read():
    own = {"output": "あ", "thinking": "い", "finish_reason": "stop", **USAGE}
    expected = client.Answer("い", "あ", "stop", 3, 4)
    assert client.read_answer(own, "score", "") == client.read_answer(CHAT | USAGE, "vllm", "") == expected
    for body in ({"choices": []} | USAGE, USAGE, {"output": "a"}, own | {"usage": 5}):
        with pytest.raises(StageError, match="not one of"):
            client.read_answer(body, "vllm", "")


def test_questions_for_an_openai_compatible_server_carry_the_trainings_system_message():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    expected = {"messages": messages, "max_tokens": 7, "temperature": 0}
    assert client.build_payload(invoke(prompt="a"), "vllm", "s") == expected
    assert client.build_payload(invoke(messages=messages), "vllm") == expected


def test_an_endpoint_that_is_not_running():
    with socket.socket() as bound:  # and not listening: nobody else can have the port
        bound.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{bound.getsockname()[1]}/score"
        with pytest.raises(StageError, match="not running") as error:
            client.score(uri, {}, timeout_s=30)
    assert "stage=deploy" in error.value.cure


def test_a_key_that_is_no_header_is_not_shown(server):
    with pytest.raises(StageError) as error:
        client.score("http://127.0.0.1:9/score", {}, timeout_s=5, key=KEY + "\n")
    assert KEY not in str(error.value)


def invoke(**given) -> Invoke:
    return Invoke(
        **({"prompt": None, "messages": None, "file": None, "model": None, "max_new_tokens": 7, "stream": None} | given)
    )


def test_the_payload_is_the_prompt_or_the_chat_with_its_limit():
    chat = [{"role": "user", "content": "a"}]
    assert client.build_payload(invoke(prompt="a")) == {"prompt": "a", "max_new_tokens": 7}
    assert client.build_payload(invoke(messages=chat)) == {"messages": chat, "max_new_tokens": 7}


def test_a_file_is_the_whole_payload(tmp_path: Path):
    (tmp_path / "request.json").write_text('{"prompt": "あ", "seed": 3}', encoding="utf-8")
    assert client.build_payload(invoke(file=str(tmp_path / "request.json"))) == {"prompt": "あ", "seed": 3}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"{", "not JSON"),
        (b"[]", "no JSON object"),
        (b"\xff", "not UTF-8"),
        (b'{"top_p": NaN}', "NaN"),
    ],
)
def test_a_file_that_is_no_request_is_named(tmp_path: Path, content: bytes | None, says: str):
    path = tmp_path / "request.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StageError, match=says) as error:
        client.build_payload(invoke(file=str(path)))
    assert error.value.where == str(path)


@pytest.mark.parametrize("given", [{}, {"prompt": "a", "file": "b"}])
def test_exactly_one_request_is_wanted(given):
    with pytest.raises(StageError, match=r"nothing is asked|prompt and file") as error:
        client.build_payload(invoke(**given))
    assert "invoke.prompt" in error.value.cure


INVOKED = {
    "{}": "{}",
    '{"messages": []}': '{"messages": []}',
    '{"messages": "hi"}': '{"messages": "hi"}',
    '{"messages": ["hi"]}': '{"messages": ["hi"]}',
    '{"messages": [{"role": "user"}]}': '{"messages": [{"role": "user"}]}',
    '{"messages": {"role": "user", "content": "hi"}}': '{"messages": {"role": "user", "content": "hi"}}',
    '{"messages": [{"role": "user", "content": [{"type": "text", "text": "12"}]}]}': "12",
    '\ufeff{"prompt": "12"}': "12",
    '{"prompt": 5}': '{"prompt": 5}',
    '{"inputs": "hi"}': '{"inputs": "hi"}',
    '{"input_data": {"input_string": ["hi"]}}': '{"input_data": {"input_string": ["hi"]}}',
}


@pytest.mark.parametrize(("content", "asked"), INVOKED.items())
def test_any_object_in_a_file_is_sent_and_its_question_shown(tmp_path: Path, content: str, asked: str):
    file = tmp_path / "request.json"
    file.write_text(content, encoding="utf-8")
    payload = client.build_payload(invoke(file=str(file)))
    assert payload == json.loads(content.removeprefix("\ufeff"))
    assert client.question_in(payload) == asked


def test_a_file_in_another_encoding_is_named_with_the_command_that_mends_it(tmp_path: Path):
    file = tmp_path / "request.json"
    file.write_text('{"prompt": "日本"}', encoding="cp932")
    with pytest.raises(StageError, match="is not UTF-8") as error:
        client.build_payload(invoke(file=str(file)))
    assert "iconv" in error.value.cure


CALL = {"function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    "body",
    [
        {
            "output": "o",
            "thinking": "t",
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        },
        {"choices": [{"message": {"content": "o", "reasoning_content": "t"}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": None, "tool_calls": [CALL]}, "finish_reason": "tool_calls"}], "note": "n"},
    ],
)
@pytest.mark.parametrize("server", ["score", "vllm"])
def test_answers_of_both_formats_are_read_whatever_was_asked(body: dict, server: str):
    answer = client.read_answer(body, server, "http://x")
    assert (answer.output, answer.thinking) == (("o", "t") if "note" not in body else ("", ""))
    assert answer.calls == (('f({"a": 1})',) if "note" in body else ())
