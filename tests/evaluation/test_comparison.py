"""stage=report: runs that ended in all ways, compared on a page that is looked at in a real browser."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import CONTRAST, opened
from helpers.command import FinishedRun, run_ftkit
from PIL import Image

from ftkit.html import duration, shown_value
from ftkit.reports.runs import trainings
from ftkit.reports.trainings import SHOWN_POINTS

SHORT = ("experiment=tiny", "stage=train", "sft.max_steps=3", "sft.eval_steps=1", "sft.per_device_train_batch_size=4")
SWEPT = [f"tiny-lora.r={r},sft.learning_rate={rate}" for r in (2, 4) for rate in ("0.002", "0.02")]


@pytest.fixture(scope="module")
def folder(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of four, one that failed, one that was killed, one that ran as a job; and the report on them."""
    folder = tmp_path_factory.mktemp("report")
    outputs = folder / "outputs"
    shutil.copytree(finished_run.folder / "outputs", outputs)
    swept = run_ftkit(*SHORT, "lora.r=2,4", "sft.learning_rate=0.002,0.02", "-m", cwd=folder)
    assert swept.status == 0, swept.err
    assert "4 of 4\n" in swept.out and "sweep        4 of 4 finished; lowest held-out loss" in swept.out, swept.out
    failed = run_ftkit(
        *SHORT, "run.name=failed", "run.base=tiny", "sft.max_length=50", "dataset.overlength=error", cwd=folder
    )
    assert failed.status == 1
    note = outputs / "failed" / "train" / "failed.json"
    note.write_text(json.dumps({"what": json.loads(note.read_text())["what"] + "<script>document.title=1</script>"}))
    shutil.copytree(outputs / SWEPT[0], outputs / "killed")
    (outputs / "killed" / "train" / "record.json").unlink()
    with (outputs / "killed" / "train" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    as_a_job(outputs, SWEPT[0], "job")
    (outputs / "prepared-only").mkdir()
    shutil.copy(outputs / "tiny" / "config.yaml", outputs / "prepared-only")
    done = run_ftkit("experiment=tiny", "stage=report", cwd=folder)
    assert done.status == 0, done.err
    (folder / "printed").write_text(done.out)
    return folder


def as_a_job(outputs: Path, of: str, name: str) -> None:
    """What a run leaves here when its training was a job on Azure ML: the small files, and a record that says where."""
    shutil.copytree(outputs / of, outputs / name, ignore=shutil.ignore_patterns("adapter", "checkpoints"))
    path = outputs / name / "train" / "record.json"
    record = json.loads(path.read_text())
    record["place"] = "azureml://jobs/brave-1/outputs/runs/paths/job"
    record["result"]["job"] = "brave-1"
    path.write_text(json.dumps(record))
    config = outputs / name / "config.yaml"
    text = config.read_text().replace("\ncompute:\n", "\ncompute:\n  instance_type: Standard_F4s_v2\n", 1)
    config.write_text(text)


@pytest.fixture(params=[("light", 1240), ("dark", 390)], ids=["light", "dark_phone"])
def page(request, chromium, folder: Path):
    scheme, width = request.param
    with opened(chromium, folder / "outputs" / "_report" / "report.html", width, scheme) as page:
        yield page


def record_of(folder: Path, name: str) -> dict:
    return json.loads((folder / "outputs" / name / "train" / "record.json").read_text())


def names(page) -> list[str]:
    return [text.split("\n")[0] for text in page.locator("tbody th").all_inner_texts()]


def test_the_page_needs_nothing_from_outside_and_fits_the_window(page) -> None:
    assert page.said == [] and [url.partition(":")[0] for url in page.asked] == ["file"]
    assert page.title() == "Trainings in outputs"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_each_run_has_a_row_with_the_figures_of_its_record_the_best_first(page, folder: Path) -> None:
    rows = page.locator("tbody tr")
    assert rows.count() == 8 and "prepared-only" not in page.content()
    finished = ["tiny", "job", *SWEPT]
    losses = {name: record_of(folder, name)["result"]["eval_loss"] for name in finished}
    shown = [row.locator("th").inner_text() for row in rows.all()]
    order = [
        next(name for name in sorted(losses, key=len, reverse=True) if text.startswith(name)) for text in shown[:6]
    ]
    assert sorted(order) == sorted(finished)
    assert [losses[name] for name in order] == sorted(losses.values())
    for row, name in zip(rows.all(), order, strict=False):
        result, cells = record_of(folder, name)["result"], row.locator("td").all_inner_texts()
        assert cells[0].split("\n")[0] == f"{result['eval_loss']:.4f}"
        assert cells[0].split("\n")[1] == f"{result['eval_thinking_loss']:.3f} · {result['eval_answer_loss']:.3f}"
        assert cells[1] == f"{result['last_loss']:.4f}" and cells[2] == f"{result['tokens_per_s']:,.0f}"
        assert cells[3] == f"{result['peak_gib']:.1f}" and cells[4] == duration(result["seconds"] / 3600)
    where = dict(zip(order, (row.locator("td").nth(5).inner_text() for row in rows.all()), strict=False))
    assert where["tiny"] == "here" and where["job"].split("\n") == ["Azure ML, 1 × Standard_F4s_v2", "job brave-1"]
    assert rows.first.get_attribute("class") == "finished best"


def test_runs_that_did_not_finish_are_listed_as_such(page) -> None:
    failed, killed = page.locator("tr.failed"), page.locator("tr.unfinished")
    assert failed.count() == killed.count() == 1
    text = failed.locator("th").inner_text()
    assert text.startswith("failed") and "rows are longer than sft.max_length=50" in text and "<script>" in text
    assert "step 3 is the last that was logged" in killed.locator("th").inner_text()
    assert page.locator(".figures dd").first.inner_text() == "6 of 8"


def test_only_settings_that_differ_have_a_column(page, folder: Path) -> None:
    headings = page.locator("thead th").all_inner_texts()
    assert {"lora.r", "sft.learning_rate", "sft.max_steps", "compute.instance_type"} <= set(headings)
    assert "sft.seed" not in headings and not any(heading.startswith("model.") for heading in headings)
    column = headings.index("lora.r") - 1
    shown = {row.locator("th").inner_text().split(",")[0].split()[0]: row.locator("td").nth(column).inner_text()
             for row in page.locator("tbody tr").all()}  # fmt: skip
    assert shown["tiny"] == "8" and shown["tiny-lora.r=4"] == "4"


def test_a_heading_sorts(page) -> None:
    heading = page.locator("thead th").nth(2)
    for direction in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        shown = [float(text) for text in page.locator("tbody tr td:nth-child(3)").all_inner_texts() if text != "–"]
        assert shown == sorted(shown, reverse=direction == "descending")
        assert page.locator("tbody tr").last.get_attribute("class") == "failed"


def test_curves_can_be_read_hidden_and_changed(page) -> None:
    assert page.locator("#chart polyline").count() == 7
    box = page.locator("#chart svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.99, box["y"] + 60)
    tip = page.locator("#tip")
    assert tip.is_visible() and "tiny" in tip.inner_text() and "0." in tip.inner_text()
    inside = tip.bounding_box()
    assert inside["x"] >= 0 and inside["x"] + inside["width"] <= page.viewport_size["width"]
    before = page.locator("#chart polyline").last.get_attribute("points")
    for name in ("held out", "its thinking", "its answers", "tokens", "hours"):
        page.get_by_role("button", name=name, exact=True).click()
        assert page.locator("#chart polyline").count() == 7
    for name in ("logarithmic", "smooth"):
        page.get_by_label(name).check()
    after = page.locator("#chart polyline").last.get_attribute("points")
    assert after != before and "NaN" not in page.locator("#chart").inner_html()
    page.locator("#keys button").first.click()
    assert page.locator("#chart polyline").count() == 6
    for button in page.locator("#keys button").all()[1:]:
        button.click()
    assert "nothing to show" in page.locator("#chart").text_content()
    assert page.said == []


def test_the_commands_of_the_best_run_work_as_they_are_copied(page, folder: Path) -> None:
    train, go_on = page.locator("pre code").all_inner_texts()
    assert train.startswith("python -m ftkit experiment=tiny") and go_on.endswith("stage=merge,register,deploy")
    done = run_ftkit(*shlex.split(train)[3:], cwd=folder)
    assert done.status == 0 and "up to date" in done.out, done.err
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".copy").first.click()
    page.wait_for_function("document.querySelector('.copy').textContent !== 'copy'")


def test_the_commands_of_a_swept_run_and_of_one_that_does_not_know_them_work(folder: Path, tmp_path: Path) -> None:
    outputs = folder / "outputs"
    (swept,) = trainings(outputs, [SWEPT[1]])
    done = run_ftkit(*shlex.split(swept.command(["train"]))[3:], cwd=folder)
    assert done.status == 0 and f"up to date (outputs/{SWEPT[1]}/train" in done.out, done.err
    config = outputs / SWEPT[2] / "config.yaml"
    lines, text = config.read_text().splitlines(), config.read_text()
    start = next(i for i, line in enumerate(lines) if line.strip() == "overrides:")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].strip().startswith("- "))
    config.write_text("\n".join([*lines[:start], "  overrides: null", *lines[end:]]))
    (frozen,) = trainings(outputs, [SWEPT[2]])
    config.write_text(text)
    command = frozen.command(["train"])
    assert f"--resolved {outputs}/" in command


def test_text_can_be_read_on_its_background(page) -> None:
    """Contrast of at least 4.5, as WCAG 2.2 asks of text."""
    tags, buttons = (".tag.best", ".tag.failed", ".tag.unfinished"), ("[aria-pressed=true]", "[aria-pressed=false]")
    rest = ("h1", "section p", "thead button", ".note", "td small", ".copy", "footer")
    for chosen in (*tags, *(f".choice button{pressed}" for pressed in buttons), *rest):
        assert page.locator(chosen).first.evaluate(CONTRAST) >= 4.5, chosen


def test_the_picture_shows_a_curve_for_each_run(folder: Path) -> None:
    picture = np.asarray(Image.open(folder / "outputs" / "_report" / "loss.png").convert("RGB"))
    assert picture.shape[1] > 1200
    for colour in ("#3b7dd8", "#e07b39", "#1f9d8f", "#d1495b", "#8a63d2", "#b58900"):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture.astype(int) - wanted).sum(-1) < 12).sum() > 50, colour


def test_the_command_says_what_came_out(folder: Path) -> None:
    printed = (folder / "printed").read_text()
    assert printed.startswith("report       6 finished, 1 failed, 1 unfinished; lowest held-out loss 0.")
    assert "outputs/_report/report.html" in printed and not (folder / "outputs" / "_report" / "config.yaml").exists()


def test_a_run_that_is_not_there_is_named_with_the_nearest(folder: Path) -> None:
    done = run_ftkit("experiment=tiny", "stage=report", "report.runs=[tiny,jobb]", cwd=folder)
    assert done.status == 1 and "there is no run jobb" in done.err and "did you mean job?" in done.err


def test_without_any_training_it_says_so(tmp_path: Path) -> None:
    done = run_ftkit("experiment=tiny", "stage=report", cwd=tmp_path)
    assert done.status == 1 and "no run has been trained here" in done.err and not (tmp_path / "outputs").exists()


def test_a_job_under_way_and_a_job_that_failed_are_told_apart(folder: Path, tmp_path: Path) -> None:
    for name, status in (("waits", "Running"), ("broke", "Failed")):
        (tmp_path / name / "azureml").mkdir(parents=True)
        shutil.copy(folder / "outputs" / "job" / "config.yaml", tmp_path / name)
        job = {"name": f"{name}-1", "stages": ["train"], "fingerprint": "", "store": "", "status": status}
        (tmp_path / name / "azureml" / "job.json").write_text(json.dumps(job))
    found = {training.name: training for training in trainings(tmp_path, None)}
    assert (found["waits"].status, found["waits"].note) == ("unfinished", "job waits-1: Running")
    assert (found["broke"].status, found["broke"].note) == ("failed", "job broke-1: Failed")
    assert found["waits"].where == "Azure ML, 1 × Standard_F4s_v2, job waits-1"


def test_a_long_curve_is_thinned_to_its_end(folder: Path, tmp_path: Path) -> None:
    from ftkit.reports.trainings import _curve

    (training,) = trainings(folder / "outputs", ["tiny"])
    line = training.steps[-1]
    training.steps[:] = [line | {"step": step} for step in range(1, 5002)]
    points = _curve(training, 0)["training"]
    assert len(points) <= SHOWN_POINTS + 1 and points[0][0] == 1 and points[-1][0] == 5001


def test_values_are_shown_as_they_are_typed() -> None:
    assert [shown_value(v) for v in (True, None, 2e-4, 3, ["a", 1.5], "x")] == [
        "true", "null", "0.0002", "3", "[a, 1.5]", "x"
    ]  # fmt: skip
    assert [duration(h) for h in (None, 2.25, 0.5, 0.01)] == ["–", "2.2 h", "30 min", "36 s"]
