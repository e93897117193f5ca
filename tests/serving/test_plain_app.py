"""gunicorn alone answers as Azure ML's inference server does: on Pythons which that does not support, it serves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ftkit.errors import StageError
from ftkit.platforms.local import endpoint as local_endpoint
from ftkit.platforms.local import server_processes
from ftkit.platforms.local.endpoint import Endpoint

QUESTION = {"prompt": "オーストラリアの首都はどこですか？", "max_new_tokens": 3}
ORIGIN = "https://a.example"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Endpoint]]:
    def started(model_dir: Path) -> Endpoint:
        return local_endpoint.start(
            endpoint_name="plain",
            deployment_name="blue",
            model_dir=model_dir,
            state_dir=tmp_path_factory.mktemp("endpoints"),
            port=0,
            startup_timeout_s=120,
            request_timeout_ms=60_000,
            max_concurrent_requests=64,
            model="tiny:1",
            variables={"AML_CORS_ORIGINS": ORIGIN, "FTKIT_MAX_NEW_TOKENS": "1000", "FTKIT_MAX_INPUT_TOKENS": "600"},
            progress=lambda _line: None,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_processes, "APPLICATION", "ftkit.serving.plain_app:app")
        yield started


@pytest.fixture(scope="module")
def plain(start: Callable[[Path], Endpoint], model_dir: Path) -> Iterator[Endpoint]:
    served = start(model_dir)
    yield served
    local_endpoint.stop(served)


def call(endpoint: Endpoint, method: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(method, f"http://127.0.0.1:{endpoint.port}{path}", timeout=60, trust_env=False, **options)


CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "health": ("GET", "/", {}),
    "a question": ("POST", "/score", {"json": QUESTION}),
    "a stream": ("POST", "/score", {"json": QUESTION | {"stream": True}}),
    "a response's path": ("POST", "/v1/responses", {"json": {"input": []}}),
    "a bad request": ("POST", "/score", {"json": {"prompt": "a", "max_tokens": 5}}),
    "another path": ("POST", "/nothing", {}),
    "another method": ("DELETE", "/score", {}),
    "the limits": ("GET", "/score", {}),
    "a model": ("GET", "/v1/models/tiny", {}),
    "ids": ("POST", "/score", {"json": QUESTION, "headers": {"x-request-id": "1", "x-ms-client-request-id": "2"}}),
    "an old id": ("POST", "/score", {"json": QUESTION, "headers": {"x-ms-request-id": "3"}}),
    "options": ("OPTIONS", "/score", {}),
}
OF_CORS = ("access-control-allow-origin", "vary")
"""Headers of a server that was told of an origin, as only this one was."""
OWN_EACH_TIME = ("date", "x-ms-run-fn-exec-ms", "x-request-id", "x-ms-request-id")


@pytest.mark.parametrize(("method", "path", "options"), REQUESTS.values(), ids=REQUESTS)
def test_it_answers_as_azures_server_does(
    endpoint: Endpoint, plain: Endpoint, method: str, path: str, options: dict[str, Any]
):
    azures, ours = (call(one, method, path, **options) for one in (endpoint, plain))
    assert (ours.status_code, without_times(ours)) == (azures.status_code, without_times(azures))
    given = options.get("headers", {})
    own = [name for name in OWN_EACH_TIME if name not in given]
    headers = {name: value for name, value in ours.headers.items() if name not in OF_CORS}
    assert {**headers, **dict.fromkeys(own)} == {**azures.headers, **dict.fromkeys(own)}
    assert all(ours.headers.get(name) for name in own if name in azures.headers)


def without_times(answer: httpx.Response) -> str:
    return re.sub(r'"created": \d+', "", answer.text)


def test_openais_chat_is_answered(plain: Endpoint):
    answer = call(plain, "POST", "/v1/chat/completions", json=CHAT).json()
    assert (answer["object"], answer["usage"]["completion_tokens"]) == ("chat.completion", 2)


def test_it_has_the_page_to_talk(plain: Endpoint):
    page = httpx.get(plain.page_uri, trust_env=False)
    assert page.status_code == 200 and "<title>Chat with tiny</title>" in page.text and page.headers["x-request-id"]


def test_swagger_describes_score(plain: Endpoint):
    assert call(plain, "GET", "/swagger.json").json() == call(plain, "GET", "/score").json()


def test_an_id_that_would_flood_the_log_is_refused(endpoint: Endpoint, plain: Endpoint):
    too_long = {"x-request-id": "1" * 101}
    assert [call(one, "GET", "/", headers=too_long).status_code for one in (endpoint, plain)] == [431, 431]


def test_pages_that_are_named_may_ask_and_others_may_not(plain: Endpoint):
    allowed = call(plain, "POST", "/score", json=QUESTION, headers={"Origin": ORIGIN})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert call(plain, "POST", "/score", json=QUESTION, headers={"Origin": "http://evil.example"}).status_code == 403
    assert call(plain, "GET", "/", headers={"Host": "evil.example"}).status_code == 403


def test_its_log_has_a_line_for_a_request(plain: Endpoint):
    call(plain, "POST", "/score?who=me", json=QUESTION)
    assert "azmlinfsrv - POST /score?who=me 200 " in Path(plain.log).read_text()


def test_a_model_that_does_not_load_gives_its_reason(
    start: Callable[[Path], Endpoint], model_dir: Path, tmp_path: Path
):
    shutil.copytree(model_dir / "merged", tmp_path / "merged")
    (tmp_path / "merged" / "chat_template.jinja").unlink()
    with pytest.raises(StageError, match=r"did not start: .*holds no chat template"):
        start(tmp_path)
