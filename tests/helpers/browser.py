"""A headless Chromium, for tests that look at a page as a reader does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.needs import not_installed

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """A browser of playwright's. Without Chromium on the machine the test is left out, but not in CI."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            not_installed("no Chromium on the PATH, nor playwright's own", "apt-get install chromium fonts-noto-cjk")
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def opened(chromium, path: Path, width: int, scheme: str) -> Iterator:
    """A page of its own, ``said`` and ``asked`` hold what it wrote to the console and which addresses it fetched."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    page.close()


CONTRAST = """e => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const light = colour => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let ground = e;
    while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
    const shades = [light(getComputedStyle(e).color), light(getComputedStyle(ground).backgroundColor)];
    const [a, b] = shades.sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""
"""Contrast of an element's text with what lies behind it, as WCAG 2.2 defines it; text needs at least 4.5."""
