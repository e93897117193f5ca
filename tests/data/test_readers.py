"""Files are read row by row; what cannot be read is a row with a reason, and a source without rows is an error."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftkit.config.resolve import resolve
from ftkit.data.readers import read_rows
from ftkit.errors import StageError

GOOD = '{"question": "q", "answer": "a"}'


def dataset(path: Path, *overrides: str):
    return resolve(["experiment=tiny", "dataset=jsonl", f"dataset.path={path}", "stage=plan", *overrides]).dataset


def write(folder: Path, *lines: bytes | str) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "q", ', "not JSON"),
        ("[1, 2]", "not a JSON object but list"),
        ("null", "not a JSON object"),
        (GOOD.encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_the_rest_is_kept(tmp_path: Path, line, reason: str):
    rows = list(read_rows(dataset(write(tmp_path, GOOD, line, GOOD))))
    bad = [row for row in rows if row.values is None]
    assert [row.number for row in bad] == [2] and reason in bad[0].reason
    assert [row.number for row in rows if row.values is not None] == [1, 3]


def test_bom_crlf_and_blank_lines_do_no_harm(tmp_path: Path):
    rows = list(read_rows(dataset(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode() + b"\r", "", GOOD))))
    assert [row.number for row in rows] == [1, 3] and all(row.values for row in rows)


def test_max_rows_reads_only_the_first(tmp_path: Path):
    assert len(list(read_rows(dataset(write(tmp_path, *[GOOD] * 10), "dataset.max_rows=3")))) == 3


def test_parquet_gives_the_same_rows(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"question": "q", "answer": "a"}] * 2), path)
    assert [row.number for row in read_rows(dataset(path))] == [1, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b'{"prompt": "q", "reply": "a"}', "the columns are prompt, reply")],
)
def test_a_source_that_gives_nothing_is_an_error_with_its_cure(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(StageError, match=says) as error:
        list(read_rows(dataset(path)))
    assert error.value.cure and error.value.where == str(path)


def test_a_parquet_file_that_is_none_is_an_error(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(StageError, match="not a readable parquet file"):
        list(read_rows(dataset(path)))


def test_a_hub_that_cannot_be_reached_is_an_error_with_its_cure():
    apto = resolve(["stage=plan"]).dataset
    with pytest.raises(StageError, match="cannot be loaded") as error:
        next(read_rows(apto))
    assert "dataset=jsonl" in error.value.cure
