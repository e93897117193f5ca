"""The start page of all runs, in a real browser."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.browser import opened

from ftkit.html import language
from ftkit.records import Record
from ftkit.reports.index import curve, write_index

LONG = "tiny-lora.r=16,sft.learning_rate=0.00025,sft.num_train_epochs=12"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("runs") / "outputs"
    for name, finished in (("日本語 #1", "2026-01-01T10:00:00+00:00"), (LONG, "2026-01-02T10:00:00+00:00")):
        folder = outputs / name
        prepared = {"train": 1213, "tokens": 30875}
        trained = {"folder": "train/adapter", "last_loss": 0.1421, "eval_loss": 0.0873, "global_step": 56}
        evaluated = {
            "base": {"thinks_in_japanese": 0.0, "right": 0.53},
            "merged": {"thinks_in_japanese": 1.0, "right": 0.37},
        }
        for stage, result in (("prepare", prepared), ("train", trained), ("evaluate", evaluated)):
            (folder / stage).mkdir(parents=True)
            record = Record(stage, "", {}, {}, {}, result, {}, 1.0, finished)
            (folder / stage / "record.json").write_text(json.dumps(asdict(record)))
        (folder / "config.yaml").write_text("run: {}\n")
        (folder / "prepare" / "report.html").write_text("<!doctype html><title>rows</title>")
        (folder / "train" / "metrics.jsonl").write_text(
            "".join(f'{{"loss": {9 - i}}}\n' for i in range(9)) + '{"loss": "low"}\n{"loss": NaN}\n'
        )
        (folder / "train" / "weights").write_bytes(bytes(3 << 20))
    failed = outputs / "failed"
    (failed / "train").mkdir(parents=True)
    (failed / "config.yaml").write_text("run: {}\n")
    (failed / "train" / "failed.json").write_text(json.dumps({"what": "out of GPU memory at step 3 " + "x" * 80}))
    (outputs / "broken" / "train").mkdir(parents=True)
    (outputs / "broken" / "config.yaml").write_text("run: {}\n")
    (outputs / "broken" / "train" / "record.json").write_text("{")
    write_index(outputs)
    return outputs


@pytest.fixture(params=[("light", 1240), ("dark", 390)], ids=["light", "dark_phone"])
def page(request, chromium, outputs: Path):
    scheme, width = request.param
    with opened(chromium, outputs / "index.html", width, scheme) as page:
        yield page


def test_the_page_needs_nothing_from_outside_and_fits_the_window(page) -> None:
    assert page.said == [] and len(page.asked) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_each_run_has_its_figures_its_size_and_its_curve_the_latest_first(page) -> None:
    cards = page.locator(".runs section")
    assert cards.locator("h2").all_inner_texts()[:2] == [LONG, "日本語 #1"]
    text = cards.nth(1).inner_text()
    for shown in ("1,213, 30,875", "0.1421", "0.0873", "0 % → 100 %", "53 % → 37 %", "3.0 MiB", "2026-01-01 10:00"):
        assert shown in text
    assert cards.nth(1).locator("svg polyline").count() == 1
    assert cards.nth(1).locator("h2").get_attribute("lang") == "ja"
    assert "out of GPU memory at step 3" in page.locator(".failed").inner_text()


def test_a_link_leads_to_the_page_of_the_run(page) -> None:
    page.locator(".runs section").nth(1).get_by_text("data").click()
    page.wait_for_function("document.title === 'rows'")


def test_a_run_that_is_gone_is_listed_no_longer(outputs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(outputs, tmp_path / "outputs"))
    shutil.rmtree(copy / "failed")
    assert "out of GPU memory" not in write_index(copy).read_text(encoding="utf-8")


def test_a_curve_falls_from_left_to_right_and_needs_two_points() -> None:
    assert curve([1.0]) == ""
    heights = [float(point.split(",")[1]) for point in curve([4.0, 2.0, 0.0]).split()]
    assert heights == [2.0, 28.0, 54.0]
    assert len(curve([1.0] * 10_000).split()) <= 150


@pytest.mark.parametrize(
    ("text", "attribute"),
    [
        ("Let us think.", ""),
        ("", ""),
        ("木曜日です。", ' lang="ja"'),
        ("東京", ' lang="ja"'),
        ("我们需要计算这个问题的答案首先我们来看一下题目中给出的条件", ' lang="zh"'),
    ],
)
def test_a_text_says_its_language(text: str, attribute: str) -> None:
    assert language(text) == attribute
