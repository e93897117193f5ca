"""The page at /chat, in a real browser: what a reader sees of questions and answers, and what the page sends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.browser import CONTRAST

from ftkit.chat.harmony_parse import HarmonyParser
from ftkit.platforms.local.endpoint import Endpoint
from ftkit.serving import client

QUESTION = "12メートルは何センチメートルですか？"
MARKUP = "<img src=x onerror=\"document.title='stolen'\"><b>bold</b>"
WIDTHS = {"desktop": (1240, "light"), "phone": (390, "dark")}


@pytest.fixture
def opened_at(chromium, endpoint: Endpoint) -> Iterator[Callable[[str], Any]]:
    """Opens the page; ``page.said`` has errors of its script, ``page.sent`` the bodies that it has sent."""
    contexts = []

    def opened(kind: str = "desktop") -> Any:
        width, scheme = WIDTHS[kind]
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.said, page.sent, page.asked = [], [], []
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("request", lambda request: page.sent.append(request.post_data_json) if request.post_data else None)
        page.goto(endpoint.page_uri)
        page.wait_for_selector("#models label", state="attached")
        page.evaluate("document.querySelector('#temperature').value = 0")
        return page

    yield opened
    for context in contexts:
        context.close()


def ask(page: Any, question: str) -> Any:
    """Ask, wait for the end of the answer, and return the card of it."""
    before = page.locator("article").count()
    page.fill("#question", question)
    page.click("#send")
    page.wait_for_function("n => document.querySelectorAll('article[aria-busy=false]').length > n", arg=before)
    return page.locator("article").nth(before)


def test_an_answer_is_the_endpoints_with_its_thinking_folded_and_the_chat_goes_on(opened_at, endpoint: Endpoint):
    page = opened_at()
    chat = [
        {"role": "system", "content": "reasoning language: Japanese"},
        {"role": "user", "content": QUESTION},
    ]
    own = client.score(endpoint.scoring_uri, {"messages": chat}, timeout_s=60)
    card = ask(page, QUESTION)
    thinking, output = card.locator(".thinking"), card.locator(".output")
    assert output.inner_text() == own["output"] and output.get_attribute("lang") == "ja"
    assert card.locator("h2").inner_text() == "tiny" and page.title() == "Chat with tiny"
    assert thinking.text_content() == own["thinking"]
    shown = []
    for _ in range(3):
        shown.append(thinking.is_visible())
        card.locator("summary").click()
    assert shown == [False, True, False]

    page.reload()
    assert page.locator("article .output").inner_text() == own["output"], "the tab keeps the chat"
    page.wait_for_selector("#models label", state="attached")
    ask(page, "120メートルなら？")
    assert page.sent[0]["messages"] == chat
    answered = {"role": "assistant", "content": own["output"]}
    assert page.sent[1]["messages"] == [*chat, answered, {"role": "user", "content": "120メートルなら？"}]
    assert page.said == []
    assert all(address.startswith(endpoint.page_uri.removesuffix("/chat")) for address in page.asked)
    page.click("#new")
    assert page.locator("article").count() == 0


def test_markup_in_a_question_and_in_an_answer_stays_text(opened_at):
    """Guards: texts are set as text alone; and the page's policy lets no script run but its own."""
    page = opened_at()
    choice = {"index": 0, "delta": {"reasoning_content": MARKUP, "content": MARKUP}, "finish_reason": "stop"}
    events = f"data: {json.dumps({'choices': [choice], 'note': MARKUP})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=events))
    card = ask(page, MARKUP)
    card.locator("summary").click()
    for place in (page.locator(".question"), *(card.locator(each) for each in (".thinking", ".output", "p"))):
        assert place.inner_text() == MARKUP
    page.reload()
    assert page.locator("article .output").inner_text() == MARKUP
    assert page.locator("img, b").count() == 0 and page.title() == "Chat with tiny"

    page.evaluate("markup => document.querySelector('h1').innerHTML = markup", MARKUP)
    page.wait_for_function("() => document.querySelector('h1 img').complete")
    assert page.title() == "Chat with tiny" and any("Content Security Policy" in line for line in page.said)


def test_stop_ends_an_answer_here_and_at_the_endpoint(opened_at, endpoint: Endpoint, tokenizer: Any):
    page, log = opened_at(), Path(endpoint.log)
    given_up = log.read_text().count("was given up")
    never = {str(token): -100 for token in HarmonyParser(tokenizer).stop_ids}

    def endless(route: Any) -> None:
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"logit_bias": never}))

    page.route("**/v1/chat/completions", endless)
    page.fill("#question", QUESTION)
    page.click("#send")
    page.wait_for_function("() => document.querySelector('article .thinking').textContent")
    assert page.locator("#stop").is_visible() and not page.locator("#send").is_visible()
    page.click("#stop")
    page.wait_for_selector("article[aria-busy=false]")
    assert page.locator("article p").inner_text() == "stopped" and page.locator("#send").is_visible()
    while log.read_text().count("was given up") == given_up:
        assert httpx.get(endpoint.health_uri, trust_env=False).status_code == 200
    page.unroute("**/v1/chat/completions")
    assert ask(page, QUESTION).locator(".output").inner_text()


def test_what_goes_wrong_is_said_in_words_and_the_question_is_not_lost(opened_at):
    page = opened_at()
    card = ask(page, "a <|return|> b")
    assert "holds the special token <|return|>" in card.locator("p.failed").inner_text()
    assert page.input_value("#question") == "a <|return|> b"
    page.context.set_offline(True)
    assert "does not answer; stage=deploy" in ask(page, QUESTION).locator("p.failed").inner_text()
    page.context.set_offline(False)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body="data: {"))
    assert "broke off" in ask(page, QUESTION).locator("p.failed").inner_text()


def test_enter_sends_but_for_one_that_ends_a_conversion_of_kana(opened_at):
    page = opened_at()
    page.fill("#question", QUESTION)
    page.evaluate("""() => document.querySelector("#question").dispatchEvent(
        new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true, cancelable: true}))""")
    assert page.locator("article").count() == 0
    page.press("#question", "Shift+Enter")
    assert page.input_value("#question") == f"{QUESTION}\n"
    page.press("#question", "Enter")
    page.wait_for_selector("article[aria-busy=false]")
    assert page.locator(".question").inner_text() == QUESTION


@pytest.mark.parametrize("kind", WIDTHS)
def test_it_fits_the_window_and_can_be_read(opened_at, kind: str):
    page = opened_at(kind)
    card = ask(page, "x" * 300)
    card.locator("summary").click()
    page.locator("#settings summary").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#send").bounding_box()
    assert box["y"] + box["height"] <= 800, "what asks is in sight"
    for place in (".question", ".output", ".thinking", "article h2", "#send", "#new", "label", "footer"):
        assert page.locator(place).last.evaluate(CONTRAST) >= 4.5, place


def test_it_is_for_this_machines_pages_alone(endpoint: Endpoint):
    refused = httpx.get(endpoint.page_uri, headers={"Host": "evil.example"}, trust_env=False)
    assert refused.status_code == 403
    policy = httpx.get(endpoint.page_uri, trust_env=False).headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
