"""Files of every kind and layout as people have them: the same rows come out, or the reason stands in their place."""

from __future__ import annotations

import bz2
import json
import lzma
import os
from pathlib import Path

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.feather
import pytest

from ftkit.data.readers import read_chunks
from ftkit.data.readers.rows import Chunk
from ftkit.data.readers.text import Unreadable, opened
from ftkit.errors import StageError

ROW = {"question": "1+1は？", "answer": "<think>足す</think>2"}
OTHER = {"question": "2+2は？", "answer": "<think>足す</think>4"}
LINE, OTHER_LINE = (json.dumps(row, ensure_ascii=False) for row in (ROW, OTHER))
CSV = "question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in (ROW, OTHER))


@pytest.fixture
def read(dataset):
    """``read(path)``: of each row its values or its number and reason, and what was left out."""

    def values(path: Path, *overrides: str) -> tuple[list, list[str]]:
        left_out: list[str] = []
        chunks = list(read_chunks(dataset("jsonl", path, *overrides), left_out=left_out.append))
        rows = [row for chunk in chunks for row in chunk.rows()]
        return [row.values or (row.number, row.reason) for row in rows], left_out

    return values


def put(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


SAME = {
    "rows.ndjson": f"{LINE}\n{OTHER_LINE}\n",
    "ROWS.JSONL": f"{LINE}\n{OTHER_LINE}\n",
    "array.jsonl": f"[{LINE}, {OTHER_LINE}]",
    "arrays.jsonl": f"[{LINE}]\n[{OTHER_LINE}]\n",
    "wrapped.json": json.dumps({"version": "1.0", "data": [ROW, OTHER]}, indent=2),
    "end to end.json": LINE + OTHER_LINE,
    "pretty.jsonl": json.dumps(ROW, indent=2) + "\n" + json.dumps(OTHER, indent=2),
    "carriage returns.jsonl": f"{LINE}\r{OTHER_LINE}\r",
    "by columns.json": json.dumps({key: [ROW[key], OTHER[key]] for key in ROW}),
    "pandas.json": json.dumps({key: {"0": ROW[key], "1": OTHER[key]} for key in ROW}),
    "Export.CSV": CSV,
    "semicolon.csv": CSV.replace(",", ";"),
    "sep.csv": "sep=;\r\n" + CSV.replace(",", ";"),
    "tabs.csv": CSV.replace(",", "\t"),
    "blanks.csv": CSV.replace("question,answer", " question , answer"),
    "unnamed.csv": CSV.replace("\n", ",,\n") + ",,,\n",
    "rows.tsv": CSV.replace(",", "\t"),
    "rows.jsonl.xz": lzma.compress(f"{LINE}\n{OTHER_LINE}\n".encode()),
    "rows.jsonl.bz2": bz2.compress(f"{LINE}\n{OTHER_LINE}\n".encode()),
    "rows.jsonl.zst": pa.compress(f"{LINE}\n{OTHER_LINE}\n".encode(), codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("name", SAME)
def test_a_file_gives_the_same_rows_in_each_kind_and_layout(tmp_path: Path, read, name: str):
    rows, left_out = read(put(tmp_path / name, SAME[name]))
    assert rows == [ROW, OTHER]
    assert left_out == (["wrapped.json: version (beside the rows under data)"] if name == "wrapped.json" else [])


def test_tables_of_arrow_and_of_save_to_disk(tmp_path: Path, read):
    table = pa.Table.from_pylist([ROW, OTHER])
    pyarrow.feather.write_feather(table, tmp_path / "rows.arrow")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    both = {"train": datasets.Dataset(table), "test": datasets.Dataset(table)}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "rows.arrow") == read(tmp_path / "saved") == ([ROW, OTHER], [])
    assert read(tmp_path / "dict") == ([ROW, OTHER], ["test (split test; dataset.split=test reads it)"])


def test_a_workbook_with_a_title_numbers_and_a_second_sheet(tmp_path: Path, read):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        ["研修データ"],
        [],
        ["question", "answer", None],
        ["1+1は？", 2, None],
        ["改行", "一行目\r\n二行目", "備考"],
    ):
        sheet.append(row)
    sheet.append(["日付", "=1/0"])
    sheet["B6"].value, sheet["B6"].data_type = "#DIV/0!", "e"
    book.create_sheet("メモ").append(["古い"])
    book.save(tmp_path / "rows.xlsx")
    rows, left_out = read(tmp_path / "rows.xlsx")
    assert rows == [
        (1, "stands above the header"),
        {"question": "1+1は？", "answer": "2"},
        {"question": "改行", "answer": "一行目\n二行目", "unnamed 3": "備考"},
        (6, "a cell holds an error of Excel"),
    ]
    assert left_out == ["rows.xlsx: rows.xlsx: sheet メモ (no wanted column)"] or "メモ" in left_out[0]


def test_an_unclosed_quotation_mark_costs_its_lines_and_each_is_counted(tmp_path: Path, read):
    lines = ["question,answer", "1,a", '2,"b', "3,c", "4,d", '5,"e"', "6,f", "7,g"]
    rows, _ = read(put(tmp_path / "rows.csv", "\n".join(lines) + "\n"))
    unclosed = "a quotation mark that is not closed rightly"
    assert [row["question"] if isinstance(row, dict) else row for row in rows] == [
        *("1", (3, unclosed), (4, unclosed), (5, unclosed), (6, unclosed), "6", "7")
    ]
    rows, _ = read(put(tmp_path / "end.csv", "\n".join(lines[:5]) + "\n"))
    assert [row if isinstance(row, tuple) else row["question"] for row in rows] == [
        *("1", (3, unclosed), (4, unclosed), (5, unclosed))
    ]


def test_quotation_marks_of_tab_separated_text_are_excels_or_the_texts_own(tmp_path: Path, read):
    excel = 'question\tanswer\r\n"彼は""はい""と言った。"\t"""はい""です。"\r\n"2,3,5の次は？"\t"一行目\n二行目"\r\n'
    assert read(put(tmp_path / "excel.tsv", excel))[0] == [
        {"question": '彼は"はい"と言った。', "answer": '"はい"です。'},
        {"question": "2,3,5の次は？", "answer": "一行目\n二行目"},
    ]
    own = 'question\tanswer\n"はい"とは？\t"yes"\n'
    assert read(put(tmp_path / "own.tsv", own))[0] == [{"question": '"はい"とは？', "answer": '"yes"'}]
    unclear = 'question\tanswer\nはいとは？\t"yes"\nいいえとは？\tno\n'
    rows, _ = read(put(tmp_path / "unclear.tsv", unclear))
    assert rows[0][0] == 2 and "which may be Excel's or its own" in rows[0][1] and rows[1]["answer"] == "no"


def test_a_key_twice_in_an_array_refuses_its_row_however_deep(tmp_path: Path, read):
    nested = '{"question": [{"role": "user", "role": "system"}], "answer": "b"}'
    array = f'[{{"question": "1", "answer": "a", "answer": "b"}}, {LINE}, {nested}]'
    rows, _ = read(put(tmp_path / "rows.json", array))
    assert rows == [(1, "a key occurs twice"), ROW, (3, "a key occurs twice")]


def test_what_a_folder_holds_beside_its_rows_is_named(tmp_path: Path, read):
    for name in ("a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "__MACOSX/._a.jsonl", "~$b.xlsx", "notes.txt"):
        put(tmp_path / name, LINE)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    rows, left_out = read(tmp_path)
    assert rows == [ROW]
    assert sorted(left_out) == [
        ".ipynb_checkpoints/ (hidden)",
        "__MACOSX/ (hidden)",
        "notes.txt (.txt is not a kind that is read)",
        "pipe.jsonl (not a regular file)",
        "zero.jsonl (not a regular file)",
        "~$b.xlsx (hidden)",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "validation.jsonl", "test.jsonl"),
        ("train/a.jsonl", "dev/a.jsonl", "test/a.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/val-0.jsonl", "data/test-0.jsonl"),
    ],
)
def test_files_named_after_splits_are_splits(tmp_path: Path, dataset, names: tuple[str, ...]):
    for i, name in enumerate(names):
        put(tmp_path / name, json.dumps(ROW | {"question": str(i)}))
    left_out: list[str] = []
    chunks = list(read_chunks(dataset("jsonl", tmp_path), left_out=left_out.append))
    assert [(row.values["question"], chunk.validation) for chunk in chunks for row in chunk.rows()] == [
        *(("0", False), ("1", True))
    ]
    assert left_out == [f"{names[2]} (split test; dataset.split=test reads it)"]
    assert [row.number for chunk in chunks for row in chunk.rows()] == [1, 2]
    of_test = dataset("jsonl", tmp_path).model_copy(update={"split": "test"})
    test = [row for chunk in read_chunks(of_test) for row in chunk.rows()]
    assert [row.values["question"] for row in test] == ["2"]


def test_held_out_rows_of_the_users_own_come_after_the_others(tmp_path: Path, dataset):
    put(tmp_path / "rows.jsonl", f"{LINE}\n{LINE}")
    own = put(tmp_path / "mine.csv", CSV)
    settings = dataset("jsonl", tmp_path / "rows.jsonl", f"dataset.validation={own}", "dataset.max_rows=1")
    chunks = list(read_chunks(settings))
    assert [(row.number, chunk.validation) for chunk in chunks for row in chunk.rows()] == [
        *((1, False), (3, True), (4, True))
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.json", json.dumps({"train": [ROW], "test": [OTHER]}), "one JSON object with lists under train, test"),
        ("rows.json", f"[{LINE},\n{LINE[:9]},\n]", ""),
        ("rows.xlsx", b"PK\x03\x04 no", "not a readable Excel workbook"),
        ("rows.arrow", b"ARROW1 no", "not a readable Arrow file"),
        ("rows.txt", LINE, ".txt is not a kind that is read"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, read, name: str, text, says: str):
    path = put(tmp_path / name, text)
    if says:
        with pytest.raises(StageError, match=says):
            read(path)
    else:
        rows, _ = read(path)
        assert rows[0] == ROW and "the rest of the file cannot be read: not JSON: line 2" in rows[1][1]


def test_a_line_that_unpacks_to_more_than_memory_is_refused_alone(tmp_path: Path, read, monkeypatch):
    from ftkit.data.readers import delimited, json_files, text

    for module in (text, json_files, delimited):
        monkeypatch.setattr(module, "LONGEST", 1_000, raising=True)
    long = json.dumps(ROW | {"answer": "x" * 5_000})
    for end in ("\n", "\r"):
        rows, _ = read(put(tmp_path / "rows.jsonl", f"{LINE}{end}{long}{end}{OTHER_LINE}{end}"))
        assert [rows[0], rows[2]] == [ROW, OTHER] and "longer than" in rows[1][1]
    rows, _ = read(put(tmp_path / "rows.csv", CSV.replace("2+2", "2" * 5_000)))
    assert rows[0] == ROW and rows[1][0] == 3 and len(rows) == 2
    rows, _ = read(put(tmp_path / "cell.csv", CSV.replace("2+2は？", '"' + "2\n" * 2_500 + '"')))
    assert rows[0] == ROW and not any(isinstance(row, dict) for row in rows[1:]), "its lines are short"


def test_what_needs_more_memory_than_there_is_is_refused_alone(tmp_path: Path, read, monkeypatch):
    """Guards: MemoryError in text.DAMAGE and in rows._parsed."""
    from ftkit.data.readers import rows, sources

    decode, lines = rows._decode, sources.json_rows

    def full(text: str) -> object:
        if len(text) > 1_000:
            raise MemoryError
        return decode(text)

    def cut_off(*arguments):
        yield from lines(*arguments)
        raise MemoryError

    monkeypatch.setattr(rows, "_decode", full)
    monkeypatch.setattr(sources, "json_rows", cut_off)
    long = json.dumps(ROW | {"answer": "x" * 5_000})
    found, _ = read(put(tmp_path / "rows.jsonl", f"{LINE}\n{long}\n{OTHER_LINE}\n"))
    assert found[:3] == [ROW, (2, "the row needs more memory than there is"), OTHER]
    assert found[3:] == [(4, "the rest of the file cannot be read: it needs more memory than there is")]


class Table:
    """Stands in for Arrow's, of which some rows do not fit into memory."""

    def __init__(self, rows: list[dict[str, str]]):
        self.rows, self.num_rows = rows, len(rows)

    def slice(self, start: int, length: int) -> Table:
        return Table(self.rows[start : start + length])

    def to_pylist(self) -> list[dict[str, str]]:
        if any(len(row["answer"]) > 1_000 for row in self.rows):
            raise MemoryError
        return self.rows


def test_a_row_of_a_table_that_needs_more_memory_than_there_is_is_refused_alone(monkeypatch):
    """Guards: MemoryError in rows._table_rows and in rows._table_row."""
    monkeypatch.setattr(pa, "Table", Table)
    table = Table([ROW, ROW | {"answer": "x" * 5_000}, OTHER])
    found = [row.values or (row.number, row.reason) for row in Chunk("rows.parquet", 0, [1, 2, 3], table).rows()]
    assert found == [ROW, (2, "the row needs more memory than there is"), OTHER]


def test_a_device_is_not_read():
    """Guard: S_ISREG in text.opened, for a file that was exchanged since its folder was searched."""
    with pytest.raises(Unreadable, match="not a regular file"), opened(Path("/dev/zero")):
        pass
