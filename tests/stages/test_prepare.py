"""stage=prepare as a user runs it: what is kept, what is refused and why, counted in files and report alike."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import psutil
import pyarrow.parquet as pq
import pytest
from helpers.command import REPOSITORY, Command
from helpers.processes import running_below

from ftkit.data import sample

GOOD = {"question": "2と3ではどちらが大きいですか？", "answer": "<think>3の方が大きい。</think>3です。"}


def answer(text) -> dict:
    return GOOD | {"answer": text}


LINES: list[tuple[object, str]] = [
    (answer("3です。"), "the answer has no <think> block"),
    (answer("<think>3です。"), "the answer's <think> is never closed"),
    (answer("<think>a</think>b<think>c</think>d"), "the answer's tags are not one <think>…</think>"),
    (answer("<think>a<think>b</think></think>c"), "the answer's tags are not one <think>…</think>"),
    (answer("<THINK>3です。"), "the answer's <think> is never closed"),
    (answer("考える\n<think>a</think>b"), "text stands before <think>"),
    (answer("<think> \n</think>b"), "the <think> block is empty"),
    (answer("<think>a</think>\n"), "no final answer follows </think>"),
    (answer(None), "answer is null, not text"),
    (answer(["3です。"]), "a message is no object"),
    (answer(3), "answer is a number, not text"),
    (GOOD | {"question": None}, "question is null, not text"),
    (GOOD | {"question": ""}, "question is empty"),
    ({"question": "q"}, "no column 'answer'"),
    (
        GOOD | {"question": "a\0b"},
        "question holds characters that are no text (NUL, half a surrogate pair, or not UTF-8)",
    ),
    (GOOD | {"kind": "\ud83d"}, "a column holds half a surrogate pair, which is no text"),
    (
        answer("<think>\udc00</think>b"),
        "answer holds characters that are no text (NUL, half a surrogate pair, or not UTF-8)",
    ),
    (
        GOOD | {"question": "<|start|>system"},
        "question holds the special token <|start|>, which would end or forge a message",
    ),
    (
        answer("<think>a</think>b<|return|>"),
        "answer holds the special token <|return|>, which would end or forge a message",
    ),
    (b'{"question": "cut in the mid', "not JSON"),
    (b'{"question": "q", "answer": "a", "answer": "b"}', "a key occurs twice"),
    (json.dumps(GOOD).encode("utf-16-le").replace(b"\n", b" "), "not JSON"),
    (b'{"question": "\xff\xfe"}', "not UTF-8"),
    (b"[1, 2, 3]", "not a JSON object"),
]
"""Each kind of bad line, and the reason that it is counted under."""

GOOD_LINES: list[object] = [
    GOOD,
    answer("\n<think>\n3の方が大きい。\n</think>\n\n3です。"),
    answer("<Think>3の方が大きい。</THINK>3です。"),
    GOOD | {"extra": "列", "number": 3},
    b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r",
    {"question": "長い", "answer": f"<think>{'長い。' * 1_200_000}</think>い"},
]
"""Lines that look odd but are kept: tags in capitals, a newline before them, a column more, a BOM and CRLF, 10 MB."""


def encoded(line: object) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prepare(ftkit, tmp_path: Path):
    """Runs the stage on ``rows.jsonl`` or another path."""

    def run(*arguments: str, path: str = "rows.jsonl", option: str = "jsonl") -> Command:
        tiny = ("experiment=tiny", "stage=prepare", "dataset.heldout=0.0")
        return ftkit(*tiny, f"dataset={option}", f"dataset.path={path}", *arguments)

    return run


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "tiny" / "prepare"


def counts_in_report(made: Path) -> dict[str, int]:
    """The table of refused rows, read from the page."""
    from html import unescape

    section = (made / "report.html").read_text("utf-8").split('<section id="refused">')[1].split("</section>")[0]
    rows = re.findall(r'<tr><th>(.*?)</th><td class="n">([\d,]+)</td></tr>', section)
    return {unescape(reason): int(count.replace(",", "")) for reason, count in rows}


def test_every_kind_of_bad_line_is_refused_and_counted_and_the_good_ones_are_untouched(prepare, tmp_path, made):
    bad = [encoded(line) for line, _ in LINES]
    lines = [line for pair in zip(bad, map(encoded, GOOD_LINES), strict=False) for line in pair] + bad[
        len(GOOD_LINES) :
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    done = prepare()
    assert done.status == 0, done.err
    rejected = jsonl(made / "rejected.jsonl")
    reasons = {encoded(line): reason for line, reason in LINES}
    expected = [(i, reasons[line]) for i, line in enumerate(lines, start=1) if line in reasons]
    assert [(row["row"], row["where"]) for row in rejected] == [(i, f"rows.jsonl:{i}") for i, _ in expected]
    assert all(row["reason"].startswith(reason) for row, (_, reason) in zip(rejected, expected, strict=True))
    assert counts_in_report(made) == Counter(reason for _, reason in LINES)
    record = json.loads((made / "record.json").read_text())["result"]
    assert record["rejected"] == len(LINES) == 24 and record["rows"] == len(lines) == 30 and record["train"] == 6
    kept = jsonl(made / "reasoning_harmony.jsonl")
    assert [row["row"] for row in kept] == [2, 4, 6, 8, 10, 12]
    plain = {"role": "assistant", "content": "3です。", "thinking": "3の方が大きい。"}
    assert [row["messages"][-1] for row in kept[:5]] == [plain] * 5 and kept[3]["extra"] == "列"
    assert len(kept[5]["messages"][-1]["thinking"]) == 3_600_000
    tokens = pq.read_table(made / "tokens.parquet").to_pylist()
    assert [row["row"] for row in tokens] == [2, 4, 6, 8, 10, 12]
    assert "refused 2: the answer's <think> is never closed" in done.out and "24 refused" in done.out


def test_in_a_folder_files_that_cannot_be_read_are_refused_one_by_one(prepare, tmp_path, made):
    (tmp_path / "data").mkdir()
    line = json.dumps(GOOD).encode()
    for name, content in {
        "a.jsonl": line + b"\n" + line,
        "b.jsonl.gz": b"no gzip",
        "c.jsonl": gzip.compress(line),
        "d.jsonl": b"",
        "e.parquet": b"PAR1",
        "f.jsonl.gz": gzip.compress(line),
        "h.csv": b"question,answer\nq,<think>a</think>b\n",
    }.items():
        (tmp_path / "data" / name).write_bytes(content)
    (tmp_path / "data" / "g.jsonl").symlink_to("nowhere")
    done = prepare(path="data")
    assert done.status == 0, done.err
    assert [row["where"] for row in jsonl(made / "rejected.jsonl")] == [
        *("b.jsonl.gz:1", "c.jsonl:1", "d.jsonl:1", "e.parquet:1", "g.jsonl:1")
    ]
    assert sum(counts_in_report(made).values()) == 5
    assert [row["row"] for row in jsonl(made / "reasoning_harmony.jsonl")] == [1, 2, 7, 10]


def test_a_file_with_no_usable_row_says_why(prepare, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(answer("3です。")), encoding="utf-8")
    done = prepare()
    assert done.status == 1 and "none of the 1 rows can be used" in done.err and "no <think> block" in done.err


def test_an_empty_folder_is_told_before_anything_runs(prepare, tmp_path: Path):
    (tmp_path / "data").mkdir()
    done = prepare(path="data")
    assert done.status == 2 and "no file to read in data" in done.err and ".jsonl" in done.err
    (tmp_path / "data" / "rows.txt").write_text(json.dumps(GOOD))
    for path in ("data", "data/rows.txt"):
        done = prepare(path=path)
        assert done.status == 2 and "rows.txt (.txt is not a kind that is read)" in done.err, "the hub is not asked"


def test_columns_that_contradict_each_other_are_told_before_anything_runs(prepare, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD))
    done = prepare("dataset.columns.messages=chat")
    assert done.status == 2 and "leave one: dataset.columns.question=null dataset.columns.answer=null" in done.err
    done = prepare("dataset.columns.answer=null")
    assert done.status == 2 and "neither messages nor question and answer" in done.err


STYLES = {
    "jsonl": GOOD,
    "messages": {
        "messages": [
            {"role": "user", "content": GOOD["question"]},
            {"role": "assistant", "thinking": "3の方が大きい。", "content": "3です。"},
        ]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": GOOD["question"]}, {"from": "gpt", "value": GOOD["answer"]}]
    },
    "prompt-completion": {"prompt": GOOD["question"], "completion": GOOD["answer"]},
}


def test_every_style_gives_the_same_tokens(prepare, tmp_path: Path, made):
    seen = []
    for option, row in STYLES.items():
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        assert prepare(option=option).status == 0
        seen.append(pq.read_table(made / "tokens.parquet"))
    assert all(table.equals(seen[0]) for table in seen[1:])


def test_bad_chats_are_refused_and_counted(prepare, tmp_path: Path, made):
    user, assistant = STYLES["messages"]["messages"]
    cases = [
        ([assistant, user], "the chat ends without an answer"),
        ([user, user, assistant], "the roles are in the wrong order"),
        ([user, assistant, {"role": "system", "content": "s"}], "the roles are in the wrong order"),
        ([user, assistant], ""),
        ([user], "the chat ends without an answer"),
        ([], "the chat has no message"),
        ([user | {"role": "tool"}, assistant], "a tool's result stands where no call was made"),
        ([user, assistant | {"thinking": "<|end|>"}], "thinking of messages holds the special token <|end|>"),
        ([user | {"content": None}, assistant], "messages is null, not text"),
        ("2+2は？", "messages is text, not a list of messages"),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat, _ in cases))
    assert prepare(option="messages").status == 0
    rejected = jsonl(made / "rejected.jsonl")
    expected = {i: reason for i, (_, reason) in enumerate(cases, start=1) if reason}
    assert [row["row"] for row in rejected] == list(expected)
    assert [row["reason"] for row in rejected if not row["reason"].startswith(expected[row["row"]])] == []
    assert sum(counts_in_report(made).values()) == 9
    assert counts_in_report(made)["the roles are in the wrong order"] == 2
    assert [row["row"] for row in jsonl(made / "reasoning_harmony.jsonl")] == [4]


def test_each_turn_of_a_chat_is_a_row_to_train_on(prepare, tmp_path: Path, made):
    turns = STYLES["messages"]["messages"]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns * 3}))
    assert prepare(option="messages").status == 0
    rows = pq.read_table(made / "tokens.parquet").to_pylist()
    assert [row["row"] for row in rows] == [1, 1, 1]
    lengths = [sum(label != -100 for label in row["labels"]) for row in rows]
    assert len(set(lengths)) == 1, "the loss lies on the last turn of each row alone"
    assert json.loads((made / "record.json").read_text())["result"]["training_rows"] == 3


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """6,000 rows, more than one process prepares alone; every hundredth is bad, and some occur again."""
    path = tmp_path_factory.mktemp("many") / "rows.jsonl"
    rows, random = list(sample.generate(5_000)), Random(0)
    rows += random.sample(rows, 1_000)
    lines = ["broken" if i % 100 == 0 else json.dumps(row, ensure_ascii=False) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_several_processes_make_the_same_files_as_one(ftkit, tmp_path: Path, many: Path):
    folders = []
    for processes in (1, 3):
        command = ("experiment=tiny", "stage=prepare", "dataset=jsonl", f"dataset.path={many}")
        done = ftkit(*command, f"run.name=by-{processes}", f"dataset.num_proc={processes}")
        assert done.status == 0 and "60 refused" in done.out, done.err
        folders.append(tmp_path / "outputs" / f"by-{processes}" / "prepare")
        assert not (folders[-1] / ".parts").exists()
    for name in ("tokens.parquet", "reasoning_harmony.jsonl", "reasoning_harmony.parquet", "rejected.jsonl"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    kept = jsonl(folders[0] / "reasoning_harmony.jsonl")
    sides: dict[str, set[str]] = {}
    for row in kept:
        sides.setdefault(row["messages"][1]["content"], set()).add(row["split"])
    assert len(kept) == 5_940 and len(sides) < 5_000 and all(len(side) == 1 for side in sides.values())


def test_a_second_run_does_nothing_until_rows_settings_or_tokenizer_change(prepare, ftkit, tmp_path: Path, made):
    import shutil

    from ftkit.assets import asset_path

    shutil.copytree(asset_path("package:tiny-gpt-oss"), tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD))
    here = "model.pretrained_model_name_or_path=model"
    assert "up to date" not in prepare(here).out
    assert "up to date" in prepare(here).out
    assert "up to date" in prepare(here, "dataset.num_proc=2").out
    assert "up to date" not in prepare(here, "dataset.persona=quiet").out
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("2024-06", "2024-07"))
    assert "up to date" not in prepare(here, "dataset.persona=quiet").out
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps(GOOD))
    assert "2 rows" in prepare(here, "dataset.persona=quiet").out


def test_a_disk_that_fills_up_is_told_and_nothing_half_written_stays(tmp_path: Path, many: Path):
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    for processes in (1, 2):
        process = start(tmp_path, many, f"dataset.num_proc={processes}", preexec_fn=limit_files)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 1 and "(ulimit -f)" in out and "Traceback" not in out, out
        left = [path.name for path in (tmp_path / "outputs" / "tiny").rglob("*") if path.is_file()]
        assert set(left) <= {"config.yaml", "failed.json", ".lock"}


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Wait until the processes that prepare rows have been started, and import what they need."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        found = running_below(psutil.Process(process.pid), "spawn_main")
        if found and any("numpy" in mapped.path for mapped in found[-1].memory_maps()):
            return found
        time.sleep(0.005)
    raise AssertionError(process.communicate()[0])


@pytest.mark.parametrize("by", ["ctrl_c", "killed_worker"])
def test_an_interruption_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, many: Path, by: str):
    process = start(tmp_path, many, "dataset.num_proc=2", start_new_session=True)
    found = workers(process)
    if by == "ctrl_c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        found[0].kill()
    out, _ = process.communicate(timeout=60)
    if by == "ctrl_c":
        assert process.returncode == 130 and "interrupted in prepare" in out, out
    else:
        assert process.returncode == 1 and "was killed, most likely for want of memory" in out, out
    folder = tmp_path / "outputs" / "tiny" / "prepare"
    assert "Traceback" not in out and not (folder / ".parts").exists()
    assert not (folder / "tokens.parquet").exists()


def start(folder: Path, rows: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "ftkit", "experiment=tiny", "stage=prepare", "dataset=jsonl"]
    return subprocess.Popen(
        [*command, f"dataset.path={rows}", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
