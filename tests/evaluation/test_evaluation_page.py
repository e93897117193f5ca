"""The evaluation's page, looked at in a real browser: what it says is what was measured, on any screen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers.browser import CONTRAST, opened

from ftkit.config.resolve import resolve
from ftkit.evaluation.asking import Asked
from ftkit.evaluation.comparison import Comparison, write_comparison
from ftkit.evaluation.measures import MEASURES, Answer

QUESTIONS = 30
LOSSES = {"eval_loss": 0.719, "eval_thinking_loss": 1.189, "eval_answer_loss": 0.008}
SCRIPT = "<script>document.title='forged'</script>"


def answer(row: int, right: bool, thinking: str, **changes) -> Answer:
    told = {"parses": True, "finished": True, "tokens": 30 + row, "thinking_tokens": 20, "seconds": 0.5} | changes
    output = f"{row}です。" if right else "分かりません。"
    return Answer(row, 0, f"{row}は？{SCRIPT}", f"{row}です。", "exact", thinking, output, **told)


@pytest.fixture(scope="module")
def compared() -> Comparison:
    """The tuned model thinks in Japanese; of 30 questions it gets 24 right that the base does not, and 3 no longer."""
    base = [answer(row, row < 5, "Let us think.") for row in range(QUESTIONS)]
    tuned = [
        answer(row, row >= 3 and row != 29, "考えます。" * (row + 1), finished=row != 7) for row in range(QUESTIONS)
    ]
    return Comparison(Asked(base, LOSSES), Asked(tuned, {key: value / 2 for key, value in LOSSES.items()}))


@pytest.fixture(scope="module")
def path(compared: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_comparison(path, compared, resolve(["experiment=tiny", "stage=plan"]))
    return path


@pytest.fixture(params=[("light", 1240), ("dark", 1240), ("light", 390)], ids=["light", "dark", "phone"])
def page(request, chromium, path: Path):
    scheme, width = request.param
    with opened(chromium, path, width, scheme) as page:
        yield page


def test_the_page_needs_nothing_from_outside_and_fits_the_window(page, path: Path) -> None:
    assert page.said == [] and [unquote(url) for url in page.asked] == [unquote(path.as_uri())]
    assert page.title() == "tiny: evaluation"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_text_says_its_language_and_the_page_leads_to_all_runs(page) -> None:
    first = page.locator("#questions details").first
    assert first.locator(".tuned p").first.get_attribute("lang") == "ja"
    assert first.locator(".base p").first.get_attribute("lang") is None
    assert page.locator("nav a").get_attribute("href") == "../../index.html"


def test_the_table_has_each_measure_with_intervals_and_the_change(page, compared: Comparison) -> None:
    rows = {row.locator("th").inner_text(): row for row in page.locator("#figures tbody tr").all()}
    assert len(rows) == len(MEASURES) + 4
    japanese = rows["thinks in Japanese"].locator("td").all_inner_texts()
    assert japanese == ["0 %\n0 to 11", "100 %\n89 to 100", "+100\n+82 to +100"]
    right = rows["right answer (word for word)"]
    base, tuned, change = right.locator("td").all_inner_texts()
    figures = next(row for row in compared.rows if row.name == "right")
    assert base.startswith("17 %\n") and tuned.startswith("87 %\n") and change.startswith("+70\n")
    assert change.endswith(f"+{100 * figures.change.low:.0f} to +{100 * figures.change.high:.0f}")
    assert right.locator("td").last.get_attribute("class") == "better"
    assert rows["ends by itself"].locator("td").last.get_attribute("class") == "unsure"
    assert rows["parses, with a final answer"].locator("td").last.inner_text() == "0\n−9 to +9"
    assert rows["… on their thinking"].locator("td").all_inner_texts() == ["1.189", "0.595", "−0.595"]
    assert page.locator("#figures").evaluate("e => [...e.querySelectorAll('td')].every(c => c.offsetWidth > 0)")


def test_the_chart_puts_the_dots_where_the_means_are(page, compared: Comparison) -> None:
    tracks = page.locator("#chart .track")
    shares = [row for row in compared.rows if row.is_share]
    assert tracks.count() == len(shares)
    for track, row in zip(tracks.all(), shares, strict=True):
        box = track.bounding_box()
        for kind, figure in (("base", row.base), ("tuned", row.tuned)):
            dot = track.locator(f".dot.{kind}").bounding_box()
            at = (dot["x"] + dot["width"] / 2 - box["x"]) / box["width"]
            assert at == pytest.approx(figure.mean, abs=0.01)
            line = track.locator(f".whisker.{kind}").bounding_box()
            assert line["width"] / box["width"] == pytest.approx(figure.high - figure.low, abs=0.01)
            assert dot["x"] >= 0 and dot["x"] + dot["width"] <= page.viewport_size["width"]


def test_what_got_worse_is_shown_as_well_as_what_got_better(page) -> None:
    assert page.locator(".figures dd").all_inner_texts()[2:] == ["24 of 30 questions", "3 of 30 questions"]
    assert page.locator("#worse summary b").all_inner_texts() == ["row 0", "row 1", "row 2"]
    assert page.locator("#better > details").count() == 20
    assert "24 of 30 questions are answered rightly more often than before; the first 20" in page.content()
    page.locator("#worse summary").first.click()
    base, tuned = page.locator("#worse details").first.locator(".answers > div").all_inner_texts()
    assert "right" in base and "Let us think." in base and "wrong" in tuned and "考えます。" in tuned


def test_ten_questions_have_both_analyses_and_answers(page) -> None:
    questions = page.locator("#questions > details")
    assert questions.count() == 10 and page.locator("#questions > details[open]").count() == 2
    first = questions.first
    assert SCRIPT in first.locator("summary").inner_text() and "0です。" in first.locator(".expected").inner_text()
    base, tuned = (first.locator(f".answers .{kind}").first.bounding_box() for kind in ("base", "tuned"))
    side_by_side = page.viewport_size["width"] > 600
    assert (base["y"] == tuned["y"]) is side_by_side and base["width"] > 300
    assert first.locator(".answers > div").all_inner_texts()[1].count("考えます。") == 1


def test_text_can_be_read_on_its_background(page) -> None:
    """Contrast of at least 4.5, as WCAG 2.2 asks of text."""
    for chosen in ("h1", "section p", "td.better", "td small", "thead th", "#questions .answers .worse",
                   "#questions .answers .better", "#questions .answers p", "#questions .answers b", ".legend",
                   ".axis span", "footer"):  # fmt: skip
        for element in page.locator(chosen).all()[:3]:
            if element.is_visible():
                assert element.evaluate(CONTRAST) >= 4.5, chosen


def test_an_adapter_that_was_asked_stands_between_base_and_tuned(
    chromium, compared: Comparison, tmp_path: Path
) -> None:
    """On a phone's width too; the change by merging has a column of its own."""
    adapter = Asked([replace(a, thinking="We think.") for a in compared.tuned.answers], LOSSES)
    three = replace(compared, adapter=adapter)
    write_comparison(tmp_path / "report.html", three, resolve(["experiment=tiny", "stage=plan"]))
    with opened(chromium, tmp_path / "report.html", 400, "light") as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("#figures thead th").all_inner_texts() == [
            "",
            "base",
            "adapter",
            "tuned",
            "change",
            "merging",
        ]
        rows = {row.locator("th").inner_text(): row.locator("td") for row in page.locator("#figures tbody tr").all()}
        assert [text.split("\n")[0] for text in rows["thinks in Japanese"].all_inner_texts()] == [
            *("0 %", "0 %", "100 %", "+100", "+100")
        ]
        assert rows["right answer (word for word)"].last.inner_text().split("\n")[0] == "0"
        losses = rows["loss on the held-out rows"].all_inner_texts()
        assert losses == ["0.719", "0.719", "0.359", "−0.359", "−0.359"]
        assert {row.count() for row in rows.values()} == {5}
    result = three.result()
    assert result["merging"]["thinks_in_japanese"] == 1 and result["adapter"]["right"] == result["merged"]["right"]


def test_the_record_has_the_same_figures(compared: Comparison) -> None:
    result = json.loads(json.dumps(compared.result()))
    assert result["questions"] == 30 and result["difference"]["right"] == pytest.approx(0.7)
    assert result["losses"]["merged"]["eval_thinking_loss"] == pytest.approx(0.5945)
    assert result["tokens_per_s"]["base"] == pytest.approx(sum(range(30, 60)) / 15)
    assert result["intervals"]["difference"]["thinks_in_japanese"][1] == 1
