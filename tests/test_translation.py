"""What is printed is Japanese where that is asked for and a translation stands; what is written never is."""

from __future__ import annotations

import ast
import json
import re
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from helpers.command import run_ftkit
from pydantic_core import PydanticKnownError

import ftkit
from ftkit.cli.help import documented_keys
from ftkit.config.option_files import groups, headline, option_file, options
from ftkit.config.resolve import resolve
from ftkit.errors import StageError
from ftkit.training import worker
from ftkit.translation import CATALOGUES, FILLED_IN, LANGUAGES, catalogue, of_environment, said, speak

OTHERS = [language for language in LANGUAGES if language != "en"]
BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
"""Pydantic's errors of numbers, whose texts ftkit's own go on with."""
JAPANESE = re.compile("[ぁ-んァ-ヶ一-龠]")
COMMAND = re.compile(
    r"python -m ftkit|(?<![\w.-])(?:[a-z][\w.]*=[^\s,;:、。：）（<]*|--?[a-z][\w-]*|[a-z]\w*(?:[._][a-z]\w*)+)"
)
"""What can be typed: a command, key=value, a flag, a key."""


def typed_in(text: str) -> list[str]:
    return sorted(found.rstrip(".") for found in COMMAND.findall(text))


def holes(text: str) -> list[str]:
    return FILLED_IN.findall(text)


def in_source() -> frozenset[str]:
    """Texts of the package, with {0}, {1} … for what they fill in, and those of pydantic that they go on with."""
    found = {
        PydanticKnownError(kind, {bound: 0}).message_template.removeprefix("Input should be ")  # type: ignore[arg-type]
        for kind, bound in BOUNDS.items()
    }
    for path in Path(ftkit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found |= texts(node) - {"{}"}
    for _, takes, doc in documented_keys():
        found |= {takes, doc}
    found |= {headline(path) for g in groups() for name in options(g) if (path := option_file(g, name))}
    found |= {line for text in found for line in text.split("\n")}
    return frozenset(numbered(text).strip("; ,\n") for text in found)


def texts(node: ast.AST) -> set[str]:
    """What an expression may be, {} standing for all that is not known."""
    match node:
        case ast.Constant(value=str(text)):
            return {text, text + "{}"} if text.endswith(" ") else {text}
        case ast.IfExp(body=one, orelse=other):
            return texts(one) | texts(other)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return {a + b for a in texts(left) for b in texts(right)}
        case ast.FormattedValue(value=ast.IfExp() as value):
            return texts(value)
        case ast.JoinedStr(values=parts):
            return {"".join(found) for found in product(*map(texts, parts))}
        case ast.Call(func=ast.Name(id="refused"), args=[_, what, *_]):
            return {f"{{}} {text}" for text in texts(what)}
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(sign)), attr="join")):
            return {f"{{}}{sign}{{}}"}
    return {"{}"}


def numbered(text: str) -> str:
    count = iter(range(99))
    return re.sub(r"\{\w*\}", lambda _: f"{{{next(count)}}}", text)


def stands(text: str, source: frozenset[str]) -> bool:
    """Whether a text is one of the source, or one with others filled in."""
    return _stands(numbered(re.sub(r"(?<=\w)\{\d\}$", "", text.strip("; ,\n"))), source)


@cache
def _stands(text: str, source: frozenset[str]) -> bool:
    if text in source or not text or re.fullmatch(r"(\{\d\})+", text):
        return True
    for any_text in ("(.*?)", "(.*)", r"(\{\d\}|.*)"):
        for pattern in patterns(any_text, source):
            if (found := pattern.fullmatch(text)) and all(stands(part, source) for part in found.groups()):
                return True
    return False


@cache
def patterns(any_text: str, source: frozenset[str]) -> list[re.Pattern[str]]:
    own = [text for text in source if re.search(r"\{\d", text) and re.search(r"\w\w", re.sub(r"\{\d+\}", "", text))]
    return [re.compile(any_text.join(map(re.escape, re.split(r"(?:\{\d+\})+", text)))) for text in own]


@pytest.fixture(scope="module")
def source() -> frozenset[str]:
    return in_source()


@pytest.mark.parametrize("language", OTHERS)
def test_each_text_of_a_catalogue_stands_in_the_source(language: str, source: frozenset[str]):
    stale = [text for text in catalogue(language) if not stands(text, source) and text not in ("; ", ", ")]
    assert stale == []


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_fills_in_the_same_and_leaves_what_can_be_typed(language: str):
    for text, there in catalogue(language).items():
        assert sorted(holes(text)) == sorted(set(holes(there))) == [str(i) for i in range(len(holes(text)))], text
        assert typed_in(text) == typed_in(there), text


@pytest.mark.parametrize("language", OTHERS)
def test_a_catalogue_is_one_of_gettexts(language: str):
    with (CATALOGUES / language / "LC_MESSAGES" / "ftkit.po").open("rb") as stream:
        read = read_po(stream, locale=language, abort_invalid=True)
    assert {str(m.id): str(m.string) for m in read if m.id} == catalogue(language)


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LC_MESSAGES": "ja", "LANG": "de_DE"}, "ja"),
        ({"LANG": "jam_JM"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({}, "en"),
    ],
)
def test_the_environment_names_the_language_as_for_other_programs(variables: dict[str, str], language: str):
    assert of_environment(variables) == language


def test_plan_and_prepare_speak_japanese_and_write_the_same(tmp_path: Path):
    made = {}
    for language in LANGUAGES:
        (tmp_path / language).mkdir()
        spoken = {"LC_ALL": "", "LANG": "ja_JP.UTF-8"} if language == "ja" else {}
        tiny = ("experiment=tiny", "stage=plan,prepare", "deployment.port=0")
        done = run_ftkit(*tiny, cwd=tmp_path / language, **spoken)
        assert done.status == 0, done
        folder = tmp_path / language / "outputs" / "tiny"
        record = json.loads((folder / "prepare" / "record.json").read_text(encoding="utf-8"))
        files = {name: (folder / name).read_bytes() for name in ("config.yaml", "prepare/rejected.jsonl")}
        made[language] = (done.out, {k: v for k, v in record.items() if k not in ("seconds", "finished")}, files)
    assert made["en"][1:] == made["ja"][1:]
    lines = [line for line in made["ja"][0].splitlines() if not line.startswith("run  ")]
    assert [line for line in lines if not JAPANESE.search(line)] == []
    assert "問題はありません" in lines and not JAPANESE.search(made["en"][0])


def test_errors_are_japanese_and_their_cures_still_work(tmp_path: Path):
    wrong = run_ftkit("experiment=tiny", "stage=plan", "sft.pakcing=false", "lora.r=zero", "language=ja", cwd=tmp_path)
    assert wrong.status == 2
    assert "設定に問題が 2 件あります" in wrong.err and "このキーはありません" in wrong.err
    assert "sft.packing" in wrong.err and "例：lora.r=8" in wrong.err
    early = run_ftkit("experiment=tiny", "stage=train", "language=ja", cwd=tmp_path)
    assert early.status == 1 and early.err.startswith("エラー"), early
    (cure,) = re.findall(r"対処 +(stage=[\w,]+)", early.err)
    assert cure == "stage=prepare,publish,train"


def test_stages_on_this_machine_say_all_in_japanese(tmp_path: Path):
    """Guard: train's own lines once went past ``said``."""
    done = run_ftkit("experiment=tiny", "stage=prepare,publish,train", "sft.max_steps=1", LANG="ja_JP.UTF-8",
                     LC_ALL="ja_JP.UTF-8", cwd=tmp_path)  # fmt: skip
    assert done.status == 0, done
    _, *lines = done.out.splitlines()  # after the run's name and folder
    assert len(lines) > 8 and [line for line in lines if not JAPANESE.search(line)] == []


def test_a_training_process_speaks_the_language_of_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Guard: worker.main's speak."""
    heard: list[str] = []

    def train(*_: object, **__: object) -> None:
        heard.append(said("no problems"))
        raise StageError("enough")

    monkeypatch.setattr(worker, "load_frozen", lambda path: resolve(["experiment=tiny", "stage=train"]))
    monkeypatch.setattr(worker, "train", train)
    monkeypatch.setattr(sys, "argv", ["worker", "", "", str(tmp_path), "", str(tmp_path / "result")])
    monkeypatch.setenv("LC_ALL", "ja_JP.UTF-8")
    try:
        worker.main()
    finally:
        speak("en")
    assert heard == ["問題はありません"]


@pytest.mark.parametrize(
    ("line", "japanese"),
    [
        (
            "step  2/56  loss 0.6597  lr 8.57e-04  306 tokens/s  peak 1.10 GiB  10:41 left",
            "ステップ  2/56  損失 0.6597  lr 8.57e-04  306 トークン/秒  ピーク 1.10 GiB  残り 10:41",
        ),
        (
            "out of GPU memory at step 4; going on from the last checkpoint with 1 row at a time, "
            "all layers recomputed, dense weights",
            "ステップ 4 で GPU のメモリーが足りなくなりました。次の設定で最後のチェックポイントから続けます："
            "1 回に 1 行、全層を再計算、密な重み",
        ),
        (
            "next best 2 rows at a time, 4 of 24 layers recomputed but for attention, dense weights (55.6 GiB)",
            "次点は 1 回に 2 行、24 層のうち 4 層を再計算（attention を除く）、密な重み（55.6 GiB）",
        ),
        (
            "ftkit_sinks attention by torch's flash attention, ftkit_lora experts (as model.* says), weights bfloat16, "
            "products in bfloat16, on NVIDIA H200; fused, the first step compiles the kernels",
            "アテンション ftkit_sinks（torch の flash attention）、エキスパート ftkit_lora（model.* の指定）、"
            "重み bfloat16、積は bfloat16、NVIDIA H200。融合あり。最初のステップでカーネルをコンパイルします",
        ),
        ("messages[1].content is empty", "messages[1].content が空です"),
        (
            "cannot make the endpoint mine: after 30 minutes it is still creating",
            "エンドポイント mine を作れません：30 分たっても creating のままです",
        ),
        (
            "Tags of all that is made in Azure, beside ftkit's own: {cost-center: a17}.",
            "Azure に作るものすべてにつけるタグ（ftkit のタグに加えて）：{cost-center: a17}。",
        ),
    ],
)
def test_lines_of_many_parts_are_turned_whole(line: str, japanese: str):
    speak("ja")
    try:
        assert said(line) == japanese
    finally:
        speak("en")


def test_help_is_japanese_down_to_the_keys(tmp_path: Path):
    out = run_ftkit("--help", "lora", cwd=tmp_path, LC_ALL="ja_JP.UTF-8").out
    lines = [line for line in out.splitlines()[1:] if line]
    assert len(lines) > 15 and [line for line in lines if not JAPANESE.search(line)] == []


def test_what_a_failure_leaves_is_english(tmp_path: Path):
    """Guard: a text is turned where it is printed alone."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1は？", "answer": "2です。"}\n', encoding="utf-8")
    rows = ("experiment=tiny", "stage=prepare", "dataset=jsonl", "dataset.path=rows.jsonl", "language=ja")
    failed = run_ftkit(*rows, cwd=tmp_path)
    assert failed.status == 1 and "回答に <think> ブロックがありません" in failed.err, failed
    (noted,) = (tmp_path / "outputs").rglob("failed.json")
    assert "none of the 1 rows can be used" in noted.read_text(encoding="utf-8")
