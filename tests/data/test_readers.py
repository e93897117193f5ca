"""What comes out of files, good and bad: every row is there once, with its number, or a reason stands in its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.prepared import prepare_rows

from ftkit.config.resolve import resolve
from ftkit.data.readers import RawRow, read_chunks, rows, sources, tables
from ftkit.errors import StageError

GOOD = '{"question": "問", "answer": "答"}'
ROW = {"question": "問", "answer": "答"}


@pytest.fixture
def read(dataset):
    def rows(path: Path | str, *overrides: str) -> list[RawRow]:
        return [row for chunk in read_chunks(dataset("jsonl", path, *overrides)) for row in chunk.rows()]

    return rows


def write(folder: Path, *lines: bytes | str, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def split(rows: Iterator[RawRow] | list[RawRow]) -> tuple[list[int], list[tuple[int, str]]]:
    """Numbers of the readable rows, and of the others with their reasons."""
    rows = list(rows)
    return [r.number for r in rows if r.values is not None], [(r.number, r.reason) for r in rows if r.values is None]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "q", ', "not JSON"),
        ('{"question": "q\0"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"question": "q", "answer": "a", "question": "r"}', "a key occurs twice"),
        (b'{"question": "\xff"}', "not UTF-8"),
        (GOOD.encode("utf-16"), "not UTF-8"),
    ],
    ids=["cut", "nul", "deep", "array", "null", "twice", "bytes", "utf16"],
)
def test_a_bad_line_has_its_number_and_the_rest_is_kept(tmp_path: Path, read, line, reason: str):
    assert split(read(write(tmp_path, GOOD, line, GOOD))) == ([1, 3], [(2, reason)])


def test_bom_crlf_and_blank_lines_do_no_harm(tmp_path: Path, read):
    rows = read(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r", "", "  ", GOOD))
    assert [(row.number, row.values) for row in rows] == [(1, ROW), (4, ROW)]


def test_a_row_of_ten_megabytes_is_read(tmp_path: Path, read):
    long = json.dumps({"question": "q", "answer": "x" * 10_000_000})
    assert [len(row.values["answer"]) for row in read(write(tmp_path, GOOD, long, GOOD))] == [1, 10_000_000, 1]


def test_max_rows_reads_only_the_first_across_chunks_and_files(tmp_path: Path, read, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK_ROWS", 2)
    for name in "ab":
        write(tmp_path, *[GOOD] * 5, name=f"{name}.jsonl")
    for wanted in (1, 2, 5, 7, 10):
        assert [row.number for row in read(tmp_path, f"dataset.max_rows={wanted}")] == [*range(1, wanted + 1)]
    assert len(read(tmp_path, "dataset.max_rows=99")) == 10


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.json.gz", "r.csv", "r.csv.gz", "r.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, read, name: str):
    rows = [{"question": '2+2は？\n"四"', "answer": "<think>a</think>, b", "kind": "算数"}] * 3
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        csv = "question,answer,kind\r\n" + '"2+2は？\n""四""","<think>a</think>, b",算数\r\n' * 3
        array = json.dumps(rows, ensure_ascii=False, indent=1)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        text = {"jsonl": lines, "json": array, "csv": csv}[name.split(".")[1]].encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert [row.values for row in read(path)] == rows


def test_folders_and_patterns_are_read_in_order_and_rows_are_numbered_through(tmp_path: Path, read):
    (tmp_path / "data" / "more").mkdir(parents=True)
    write(tmp_path / "data", GOOD, "", GOOD, name="b.jsonl")
    write(tmp_path / "data" / "more", "question,answer", "q,a", name="a.csv")
    write(tmp_path / "data", "not read", name="notes.txt")
    write(tmp_path / "data", GOOD, name=".hidden.jsonl")
    rows = read(tmp_path / "data")
    assert [(row.number, row.where) for row in rows] == [(1, "b.jsonl:1"), (3, "b.jsonl:3"), (5, "more/a.csv:2")]
    assert [row.where for row in read(f"{tmp_path}/data/*.jsonl")] == ["b.jsonl:1", "b.jsonl:3"]
    assert len(read(f"{tmp_path}/**/*.csv")) == 1


BROKEN = {
    "not_gzip.jsonl.gz": (GOOD.encode(), "cannot be read: Not a gzipped file"),
    "empty.jsonl": (b"", "the file is empty"),
    "not_parquet.parquet": (b"PAR1 no", "not a readable parquet file"),
    "cut.json": (b'[{"question": "q", ', "not JSON: line 1: "),
    "gzip.jsonl": (gzip.compress(GOOD.encode()), "compressed by gzip (.gz), whatever its name says"),
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
    "page.csv": (b"<!DOCTYPE html>\n<html>", "a web page"),
    "columns.csv": (b"question,answer,question\nq,a,r\n", "has the column 'question' twice"),
    "quotes.csv": (b'question,"ans"wer\nq,a\n', "not CSV"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_is_an_error_alone_and_one_refused_row_among_others(tmp_path, read, name: str):
    content, says = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError) as caught:
        read(tmp_path / name)
    assert says in str(caught.value) and caught.value.where == str(tmp_path / name) and caught.value.cure
    write(tmp_path, GOOD, GOOD, name="a.jsonl")
    write(tmp_path, GOOD, name="z.jsonl")
    kept, refused = split(read(tmp_path))
    assert kept == [1, 2, 4] and [number for number, _ in refused] == [3] and says in refused[0][1]


def test_a_link_to_nowhere_in_a_folder_is_one_refused_row(tmp_path: Path, read):
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    write(tmp_path, GOOD, name="a.jsonl")
    assert split(read(tmp_path)) == ([1], [(2, "the file cannot be read: No such file or directory")])


def test_of_a_gz_that_is_cut_off_the_rows_before_are_kept(tmp_path: Path, read):
    lines = [json.dumps({"question": f"q{i}", "answer": f"{hash(str(i))}"}) for i in range(5000)]
    whole = gzip.compress("\n".join(lines).encode())
    (tmp_path / "r.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    kept, refused = split(read(tmp_path / "r.jsonl.gz"))
    assert 1000 < len(kept) < 4000 and kept == [*range(1, len(kept) + 1)]
    assert [number for number, _ in refused] == [len(kept) + 1]
    assert "the rest of the file cannot be read" in refused[0][1]


def test_csv_rows_that_do_not_fit_the_header_are_refused(tmp_path: Path, read):
    lines = ["question,answer", "q,a", "q", "q,a,b", "", 'q,"a"b', "q,\xff", "q,a", 'q,"never closed']
    path = tmp_path / "r.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode("latin-1"))
    rows = read(path)
    kept, refused = split(rows)
    assert kept == [2, 7, 8]
    misfit = "fields that do not fit the header"
    unclosed = "a quotation mark that is not closed rightly"
    assert refused == [(3, misfit), (4, misfit), (6, unclosed), (9, unclosed)]
    assert rows[4].values["answer"] == "\udcff", "bytes that are not UTF-8 are left for the conversion to refuse"


def test_an_array_of_other_things_than_objects(tmp_path: Path, read):
    path = write(tmp_path, f"[{GOOD}, 3, {GOOD}]", name="r.json")
    assert split(read(path)) == ([1, 3], [(2, "not a JSON object")])


def test_parquet_text_that_is_not_utf8_is_refused_alone(tmp_path: Path, read):
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"q\xffq"))
    pq.write_table(pa.table({"question": text, "answer": ["a"] * 3}), tmp_path / "r.parquet")
    assert split(read(tmp_path / "r.parquet")) == ([1, 3], [(2, "a text of the table is not UTF-8")])


@pytest.mark.parametrize(
    "kind",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(9), pa.dictionary(pa.int32(), pa.binary())],
    ids=str,
)
def test_bytes_of_a_column_are_its_text(tmp_path: Path, read, kind: pa.DataType):
    """Spark, Hive and BigQuery write texts so; of a column that is not read nothing is asked."""
    texts = ["日本語", "東京駅", None]
    as_bytes = pa.array([text and text.encode() for text in texts]).cast(kind)
    columns = {"question": as_bytes, "answer": texts, "picture": pa.array([b"\x89PNG\xff"] * 3)}
    with pa.OSFile(str(tmp_path / "r.arrow"), "wb") as sink, pa.ipc.new_file(sink, pa.table(columns).schema) as file:
        file.write_table(pa.table(columns))
    assert [row.values["question"] for row in read(tmp_path / "r.arrow")] == texts


def test_bytes_inside_of_messages_are_their_text_and_what_is_no_utf8_refuses_its_row(tmp_path: Path):
    message = pa.struct([("role", pa.string()), ("content", pa.binary())])
    chats = [[("user", text), ("assistant", "<think>t</think>答".encode())] for text in ("問".encode(), b"\x8d\xff")]
    rows = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    pq.write_table(pa.table({"messages": pa.array(rows, pa.list_(message))}), tmp_path / "r.parquet")
    made = prepare_rows(tmp_path / "r.parquet", tmp_path, "messages", "dataset.reasoning_language=null")
    kept = [{"role": "user", "content": "問"}, {"role": "assistant", "thinking": "t", "content": "答"}]
    assert [row["messages"] for row in made.conversations] == [kept]
    assert made.said[0] == "refused 1: a text of the table is not UTF-8 (write its column as UTF-8 text)"


def test_a_folder_without_data_is_an_error(tmp_path: Path, read):
    with pytest.raises(StageError, match="nothing to read"):
        read(tmp_path)


@pytest.mark.parametrize("content", ['{"prompt": "q", "reply": "a"}', "{}"])
def test_rows_without_the_columns_are_an_error_that_lists_those_there_are(tmp_path: Path, read, content: str):
    path = write(tmp_path, "broken", content, GOOD)
    with pytest.raises(StageError, match="no column 'question' and no column 'answer'; the columns are") as caught:
        read(path)
    assert caught.value.where == str(path) and "dataset.columns.question=…" in caught.value.cure
    assert ("prompt, reply" if "prompt" in content else "none") in str(caught.value)


def test_a_row_that_lacks_one_column_is_left_for_the_conversion_to_refuse(tmp_path: Path, read):
    assert len(read(write(tmp_path, '{"question": "q"}', GOOD))) == 2


def test_rows_from_the_hub_come_in_order(tmp_path: Path, read, monkeypatch):
    """A folder with a data set's own files stands for the hub: ``datasets`` reads both alike."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tables, "CHUNK_ROWS", 2)
    monkeypatch.setattr(sources, "find_files", lambda path, split="train": None)
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub", *(json.dumps({"question": str(i), "answer": "a"}) for i in range(5)), name="train.jsonl")
    rows = read(tmp_path / "hub")
    assert [(row.number, row.values["question"]) for row in rows] == [(i + 1, str(i)) for i in range(5)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Path:
    """A data set with subsets and splits, described as on the hub; ``datasets`` reads a folder alike."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "find_files", lambda path, split="train": None)
    monkeypatch.setattr(sources, "find_validation", lambda path, on_hub: None)
    home = tmp_path / "hub"
    splits = {"ja": ("train", "dev"), "en": ("train",)}
    for subset in splits:
        (home / subset).mkdir(parents=True)
        for name in splits[subset]:
            rows = [json.dumps({"question": f"{subset} {name} {i}", "answer": "a"}) for i in range(3)]
            write(home / subset, *rows, name=f"{name}.jsonl")
    configs = [
        {"config_name": subset, "data_files": [{"split": name, "path": f"{subset}/{name}.jsonl"} for name in names]}
        for subset, names in splits.items()
    ]
    (home / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", encoding="utf-8")
    return home


@pytest.fixture
def load(hub: Path, dataset):
    def rows(**settings: str) -> list[RawRow]:
        asked = dataset("jsonl", hub).model_copy(update=settings)
        return [row for chunk in read_chunks(asked) for row in chunk.rows()]

    return rows


def test_a_subset_of_the_hub_and_its_own_held_out_split(load):
    rows = load(subset="ja", validation="dev")
    assert [row.values["question"] for row in rows] == [f"ja {name} {i}" for name in ("train", "dev") for i in range(3)]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.values["question"] for row in load(subset="en")] == [f"en train {i}" for i in range(3)]


@pytest.mark.parametrize(
    ("settings", "what", "cure"),
    [
        ({}, "the data set has several subsets; there are ja, en", "dataset.subset=ja"),
        ({"subset": "jp"}, "the data set has no subset jp; there are ja, en", "dataset.subset=ja"),
        ({"subset": "ja", "split": "trian"}, "has no split trian; there are train, dev", "dataset.split=train"),
        ({"subset": "ja", "validation": "dve"}, "has no split dve; there are", "dataset.validation=dev"),
    ],
)
def test_a_subset_or_split_that_the_hub_has_not_is_named_with_the_nearest(load, settings, what, cure):
    with pytest.raises(StageError) as caught:
        load(**settings)
    assert what in str(caught.value) and caught.value.cure == cure


def test_a_hub_that_cannot_be_reached_is_an_error_with_its_cure():
    apto = resolve(["stage=plan"]).dataset
    with pytest.raises(StageError, match="cannot be loaded") as error:
        next(read_chunks(apto))
    assert "dataset=jsonl" in error.value.cure
