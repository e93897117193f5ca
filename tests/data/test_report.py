"""The data report as a reader sees it, in a real browser: figures, colours, and nothing from outside."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.browser import CONTRAST, opened
from helpers.command import run_ftkit
from PIL import Image

from ftkit.data.report import histogram_of, percent, shown_rows
from ftkit.data.statistics import Statistics

ROWS = [
    ("りんごは<b>いくつ</b>？", "<think>数える。\n\n🤖が数える。</think>三つです。"),
    ("りんごは<b>いくつ</b>？", "<think>Let me count them one by one, slowly.</think>三つです。"),
    *((f"{i}番目の質問です。", f"<think>{'考える。' * 2 * i}</think>答え{i}です。") for i in range(1, 31)),
    ("bad", "<script>document.title = 'taken'</script>"),
    ("worse", "<think>never closed"),
    ("worst", "<think>never closed"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    lines = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tiny = ("experiment=tiny", "stage=prepare", "sft.max_length=250", "dataset.heldout=0.2")
    done = run_ftkit(*tiny, "run.name=look", "dataset=jsonl", "dataset.path=rows.jsonl", cwd=folder)
    assert done.status == 0, done.err
    return folder / "outputs" / "look" / "prepare"


@pytest.fixture(params=[("light", 1100), ("dark", 390)], ids=["light", "dark_phone"])
def page(request, chromium, made: Path):
    scheme, width = request.param
    with opened(chromium, made / "report.html", width, scheme) as page:
        yield page


def test_the_page_needs_nothing_from_outside_and_fits_the_window(page) -> None:
    assert page.said == [] and len(page.asked) == 1
    assert page.title() == "look: data report"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_japanese_rows_say_so(page) -> None:
    assert page.locator(".tokens[lang=ja]").count() == page.locator(".tokens").count()


def test_the_figures_are_those_of_the_record(page, made: Path) -> None:
    result = json.loads((made / "record.json").read_text())["result"]
    shown = page.locator(".figures dd").all_inner_texts()
    figures = [f"{result[name]:,}" for name in ("rows", "train", "heldout", "rejected", "tokens")]
    assert [text.split()[0] for text in shown[:5]] == figures
    assert shown[5] == percent(result["loss_tokens"] / result["tokens"])
    refused = page.locator("#refused tr").all_inner_texts()
    assert [text.split("\t") for text in refused] == [
        ["the answer's <think> is never closed", "2"],
        ["the answer has no <think> block", "1"],
    ]
    tokens = pq.read_table(made / "tokens.parquet").to_pylist()
    longer = sum(len(row["input_ids"]) > 250 and row["split"] == "train" for row in tokens)
    assert longer and f"{longer} rows are longer" in page.locator("#lengths").inner_text()
    assert page.locator("#duplicates td").all_inner_texts()[0] == "1"
    bars = page.locator("#languages tr").all_inner_texts()
    assert [text.split()[-2:] for text in bars[:2]] == [["97", "%"], ["3", "%"]]


def test_each_token_is_coloured_by_whether_it_carries_loss(page, made: Path, tiny) -> None:
    rows = {row["row"]: row for row in pq.read_table(made / "tokens.parquet").to_pylist()}
    assert page.locator("details").count() == 10
    with_loss = page.locator(".legend .loss").evaluate("e => getComputedStyle(e).backgroundColor")
    for details in page.locator("details").all():
        if not details.evaluate("e => e.open"):
            details.locator("summary").click()
        row = rows[int(details.locator("b").inner_text().removeprefix("row "))]
        pieces = details.locator("i").evaluate_all(
            "all => all.map(e => "
            "[e.title, e.classList.contains('loss'), getComputedStyle(e).backgroundColor, e.textContent])"
        )
        ids = [(int(n), loss) for title, loss, _, _ in pieces for n in title.split()]
        assert ids == [(n, label != -100) for n, label in zip(row["input_ids"], row["labels"], strict=True)][: len(ids)]
        backgrounds = {
            loss: {colour for _, piece_loss, colour, _ in pieces if piece_loss == loss} for loss in (True, False)
        }
        assert with_loss in backgrounds[True] and not backgrounds[True] & backgrounds[False]
        text = "".join(text for *_, text in pieces).replace("↵\n", "\n")
        assert text == tiny.decode(row["input_ids"]) and "\ufffd" not in text


def test_text_can_be_read_on_its_background(page) -> None:
    """Contrast of at least 4.5, as WCAG 2.2 asks of text."""
    for chosen in (".tokens i.loss", ".tokens i.loss:nth-of-type(even)", ".tokens i:not(.loss)", ".tokens i.special"):
        assert page.locator(chosen).first.evaluate(CONTRAST) >= 4.5, chosen


def test_the_picture_shows_something(made: Path) -> None:
    picture = np.asarray(Image.open(made / "report.png").convert("RGB"))
    assert picture.shape[1] > 1200 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50 %"),
        (0.004, "0.4 %"),
        (0.9996, "99.96 %"),
        (1e-9, "< 0.01 %"),
        (1 - 1e-9, "> 99.99 %"),
    ],
)
def test_a_share_that_is_not_quite_all_or_none_never_looks_so(share: float, shown: str) -> None:
    assert percent(share) == shown


def statistics(lengths: list[int], trained: list[bool]) -> Statistics:
    parts = np.array([[n, n // 2, n // 4] for n in lengths], np.int32)
    languages = {"thinking": Counter(), "answer": Counter()}
    empty: Any = None
    return Statistics(
        len(lengths),
        0,
        Counter(),
        0,
        0,
        0,
        languages,
        parts,
        np.array(trained),
        0,
        0,
        split=empty,
        account=empty,
        cures={},
    )


def test_the_histogram_ends_where_rows_are_hopelessly_long() -> None:
    found = histogram_of(statistics([100, 200, 5_000_000], [True] * 3), max_length=1000)
    assert found.edges[-1] == 1500 and found.beyond == 1 and sum(found.counts) == 3
    assert histogram_of(statistics([100], [True]), 1000).counts == [1]
    assert sum(histogram_of(statistics([100, 300], [False] * 2), 1000).counts) == 2, "nothing is trained on"
    assert statistics([100], [False]).packing(1000) == (0, 0.0)


def test_a_long_row_is_shown_by_its_beginning_and_its_end(tmp_path: Path, tiny) -> None:
    ids = tiny("長い文。" * 300, add_special_tokens=False)["input_ids"]
    row = {"row": 1, "split": "train", "input_ids": ids, "labels": ids}

    pq.write_table(pa.Table.from_pylist([row] * 25), tmp_path / "t.parquet", row_group_size=7)
    shown = shown_rows(tmp_path / "t.parquet", tiny)
    assert len(shown) == 10 and shown[0].hidden == len(ids) - 400
    assert "".join(t.text for t in shown[0].head).startswith("長い文。")
    assert "".join(t.text for t in shown[0].tail).endswith("文。")
