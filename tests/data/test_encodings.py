"""Text as Japanese programs save it: recognised whole, or refused whole with the key that reads it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ftkit.data.readers import read_chunks
from ftkit.errors import StageError

HEADER = "question,answer\r\n"
ROWS = [
    ("日本の首都は？", "<think>日本の首都は東京。</think>東京です。"),
    ("3+4は？", "<think>3に4を足す。</think>7です。"),
    ("～と―の違いは？", "<think>表と能と ソ を見る。</think>違いはありません。"),
    ("ascii only", "<think>plain</think>ok"),
]
CSV = HEADER + "".join(f"{q},{a}\r\n" for q, a in ROWS)
JSONL = "".join(f'{{"question": "{q}", "answer": "{a}"}}\n' for q, a in ROWS)
ENCODINGS = ("cp932", "euc_jp", "iso2022_jp", "utf-16", "utf-16-le", "utf-16-be", "utf-8", "utf-8-sig", "utf-32")


@pytest.fixture
def read(dataset):
    def values(path: Path, *overrides: str) -> list:
        rows = [row for chunk in read_chunks(dataset("jsonl", path, *overrides)) for row in chunk.rows()]
        return [row.values or (row.number, row.reason) for row in rows]

    return values


def same(text: str, encoding: str) -> str:
    """EUC-JP and ISO-2022-JP have no ～ of their own and give the wave dash."""
    return text.replace("～", "〜") if encoding in ("euc_jp", "iso2022_jp") else text


@pytest.mark.parametrize("kind", ["rows.csv", "rows.jsonl", "rows.csv.gz"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_encoding_is_recognised_and_no_character_is_changed(tmp_path: Path, read, encoding: str, kind: str):
    text = same(CSV if "csv" in kind else JSONL, encoding)
    content = text.encode(encoding)
    path = tmp_path / kind
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    rows = read(path)
    assert [(row["question"], row["answer"]) for row in rows] == [
        (same(q, encoding), same(a, encoding)) for q, a in ROWS
    ]


def test_a_japanese_header_in_cp932(tmp_path: Path, read):
    path = tmp_path / "rows.csv"
    path.write_bytes(CSV.replace("question,answer", "質問,答え").encode("cp932"))
    rows = read(path, "dataset.columns.question=質問", "dataset.columns.answer=答え")
    assert [row["質問"] for row in rows] == [q for q, _ in ROWS]


def test_a_file_whose_first_megabytes_are_ascii_is_read_whole(tmp_path: Path, read):
    plain = "question,answer\n" + "a question,an answer\n" * 60_000
    path = tmp_path / "rows.csv"
    path.write_bytes((plain + "".join(f"{q},{a}\n" for q, a in ROWS)).encode("cp932"))
    rows = read(path)
    assert len(rows) == 60_004 and rows[-4]["question"] == "日本の首都は？"


def test_of_a_cp932_file_with_a_damaged_line_that_line_alone_is_refused(tmp_path: Path, read):
    lines = [f'{{"question": "{q}", "answer": "{a}"}}'.encode("cp932") for q, a in ROWS * 20]
    lines[3] = b'{"question": "\x82\xa0\x82", "answer": "\x80\x80\xa0"}'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = read(path)
    assert len(rows) == 80 and [row for row in rows if isinstance(row, tuple)] == [(4, "not cp932")]


@pytest.mark.parametrize(
    ("text", "encoding", "likely"),
    [
        ("Où est le café ?,Près de la forêt.\n" * 4, "cp1252", "dataset.encoding=cp1252"),
        ("你好世界今天天气很好,我们去吃饭吧\n" * 4, "gb18030", "dataset.encoding=gb18030"),
        ("a,東京\n", "cp932", "dataset.encoding="),
    ],
    ids=["french", "chinese", "two kanji"],
)
def test_what_cannot_be_told_for_sure_is_refused_whole_with_the_key_that_reads_it(
    tmp_path: Path, read, text: str, encoding: str, likely: str
):
    path = tmp_path / "rows.csv"
    path.write_bytes((HEADER + "plain,row\n" + text).encode(encoding))
    with pytest.raises(StageError, match="its encoding cannot be told for sure") as caught:
        read(path)
    assert likely in caught.value.cure
    rows = read(path, f"dataset.encoding={encoding}")
    assert [f"{row['question']},{row['answer']}\n" for row in rows[1:]] == text.splitlines(keepends=True)


def test_lines_that_are_damaged_do_not_make_utf8_another_encoding(tmp_path: Path, read):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(JSONL.encode() + b'{"question": "\x82\xa0", "answer": "a"}\n' + JSONL.encode())
    assert [row for row in read(path) if isinstance(row, tuple)] == [(5, "not UTF-8")]


@pytest.mark.parametrize(("encoding", "circled"), [("euc_jp", b"\xad\xa1"), ("iso2022_jp", b"\x1b$B-!\x1b(B")])
def test_the_circled_numbers_that_pythons_codecs_lack(tmp_path: Path, read, encoding: str, circled: bytes):
    path = tmp_path / "rows.csv"
    path.write_bytes(same(CSV, encoding).encode(encoding) + circled + "とは？,いち\n".encode(encoding))
    assert read(path)[-1] == {"question": "①とは？", "answer": "いち"}


def test_the_encoding_that_the_user_names_holds(tmp_path: Path, read):
    path = tmp_path / "rows.csv"
    path.write_bytes("question,answer\nｱ,ｲ\n".encode("cp932"))
    assert read(path, "dataset.encoding=cp932") == [{"question": "ｱ", "answer": "ｲ"}]
