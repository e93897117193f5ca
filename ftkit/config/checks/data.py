"""Rows and the model's folder: whether they are where the configuration says, and how a row is read."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from ftkit.config.data_files import (
    READ,
    DataFiles,
    find_files,
    find_validation,
    is_data_file,
    is_pattern,
    split_named,
)
from ftkit.config.dataset import Columns, Dataset, key_of_source
from ftkit.config.schema import Config
from ftkit.errors import Problem, nearest

ENCODINGS = (*("utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp932", "shift_jis", "euc_jp", "iso2022_jp"), "cp1252")
"""Of Python's encodings, those that a hint may name."""
OF_PARTS = ("thinking", "answer")
"""Ends of names that held-out losses have already."""


def rows_come_from_somewhere(config: Config) -> Iterator[Problem]:
    dataset = config.dataset
    if dataset.mix is None:
        if dataset.path is None:
            yield Problem("dataset.path", "null, and dataset.mix names no sources", "", "dataset.path=<your rows>")
        return
    if not dataset.mix:
        yield Problem("dataset.mix", "names no source", "", "dataset.mix=null dataset.path=<your rows>")
    for key in ("path", "subset", "revision", "validation"):
        if (value := getattr(dataset, key)) is not None:
            what = f"{value}, beside dataset.mix, whose sources have each their own"
            yield Problem(f"dataset.{key}", what, "", f"dataset.{key}=null")


def sources_have_their_share(config: Config) -> Iterator[Problem]:
    sources = config.dataset.mix or {}
    for name, source in sources.items():
        key = key_of_source(name)
        if source.weight is not None and source.rows is not None:
            what = f"weight={source.weight:g} and rows={source.rows} both say how much to take of {name}"
            yield Problem(key, what, "", f"leave one: {key}.rows=null")
        if name.endswith(OF_PARTS):
            what = f"{name} as a name would make the held-out loss of the source look like that of thinking or answers"
            yield Problem("dataset.mix", what, "", "another name")
    pairs = {name for name, source in sources.items() if source.columns.chosen is not None}
    if pairs and (alone := [name for name in sources if name not in pairs]):
        what = f"{min(pairs)} has two answers to a question and {alone[0]} has one, and a training takes one kind"
        yield Problem("dataset.mix", what, "", f"leave one out: ~dataset.mix.{alone[0]}")


def dataset_files_exist(config: Config) -> Iterator[Problem]:
    for key, source in _sources(config):
        found = find_files(source.place, source.split)
        if found is None or found.files:
            continue
        if found.splits != ("train",):
            there = ", ".join(found.splits)
            what = f"{source.path} has no file of the split {source.split}"
            yield Problem(f"{key}.split", what, "", f"{key}.split={found.splits[0]}; there are {there}")
            continue
        yield _nothing_there(f"{key}.path", source.place, found)


def validation_files_exist(config: Config) -> Iterator[Problem]:
    for key, source in _sources(config):
        if source.validation is None:
            continue
        found = find_validation(source.validation, on_hub=find_files(source.place, source.split) is None)
        if found is not None and not found.files:
            yield _nothing_there(f"{key}.validation", source.validation, found)


def _sources(config: Config) -> Iterator[tuple[str, Dataset]]:
    """The key and the settings of each source; none where no rows are read here."""
    if not _asked_for(config):  # a job does not have what was prepared before it
        return
    for name, source in config.dataset.sources.items():
        if source.path is not None:
            yield key_of_source(name), source


def _nothing_there(key: str, path: str, found: DataFiles) -> Problem:
    kinds = f"files are {READ}"
    if found.left_out:
        shown = ", ".join(map(str, found.left_out[:3])) + (", …" if len(found.left_out) > 3 else "")
        return Problem(key, f"no file to read in {path}: {shown}", "", kinds)
    if _lies_here(Path(path)) or is_pattern(path):
        return Problem(key, f"no file to read in {path}", "", kinds)
    return Problem(key, f"no such file: {path}", "", nearest_file(key, Path(path), kinds))


def _asked_for(config: Config) -> bool:
    """Whether the rows are read, or are to be looked at, on this machine."""
    return bool({"prepare", "plan"} & {*config.stages}) and not config.job.records


def _lies_here(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def files_have_no_hub_settings(config: Config) -> Iterator[Problem]:
    for key, source in _sources(config):
        if (found := find_files(source.place, source.split)) is None:
            continue
        for name in ("revision", "subset"):
            if (value := getattr(source, name)) is not None:
                what = f"{value}, but {source.path} lies on this machine; only the hub has a {name}"
                yield Problem(f"{key}.{name}", what, "", f"{key}.{name}=null")
        wanted = split_named(source.split) or source.split
        if found.files and wanted not in found.splits:
            what = f"{source.split}, but no file of {source.path} is named after a split, so that all of it is train"
            yield Problem(f"{key}.split", what, "", f"{key}.split=train")


def encoding_is_known(config: Config) -> Iterator[Problem]:
    for name, source in config.dataset.sources.items():
        encoding, key = source.encoding, f"{key_of_source(name)}.encoding"
        if encoding is None:
            continue
        try:
            if codecs.lookup(encoding)._is_text_encoding:
                continue
        except (LookupError, ValueError):
            pass
        close = nearest(encoding.lower(), ENCODINGS) or "cp932"
        yield Problem(key, f"{encoding!r} is no encoding that Python knows", "", f"{key}={close}")


def columns_say_where_the_chat_is(config: Config) -> Iterator[Problem]:
    for name, source in config.dataset.sources.items():
        yield from _of_columns(source.columns, f"{key_of_source(name)}.columns")


def _of_columns(columns: Columns, key: str) -> Iterator[Problem]:
    """What is wrong with the columns that stand below a key."""
    pair = [name for name in ("question", "answer") if getattr(columns, name) is not None]
    sides = [name for name in ("chosen", "rejected") if getattr(columns, name) is not None]
    if sides:
        yield from _pair_of_answers(columns, sides, key)
        return
    beside = [name for name in ("thinking", "input", "history") if getattr(columns, name) is not None]
    if columns.messages is not None and (pair or beside):
        clash = [*pair, *beside]
        drop = " ".join(f"{key}.{name}=null" for name in clash)
        yield Problem(key, f"messages and {' and '.join(clash)} are both given", "", f"leave one: {drop}")
    elif columns.messages is None and len(pair) < 2:
        what = "neither messages nor question and answer are given"
        drop = "".join(f" {key}.{name}=null" for name in pair)
        two = f"{key}.question=question {key}.answer=answer"
        yield Problem(key, what, "", f"{two}, or {key}.messages=messages{drop}")


def _pair_of_answers(columns: Columns, sides: list[str], key: str) -> Iterator[Problem]:
    """Two answers to one question, which a column may hold, or which are both whole chats."""
    if len(sides) == 1:
        other = "rejected" if sides == ["chosen"] else "chosen"
        what = f"{sides[0]} is given, and {other} is not"
        yield Problem(key, what, "", f"{key}.{other}=<the column of the other answer>")
    if clash := [name for name in ("answer", "thinking", "messages") if getattr(columns, name) is not None]:
        drop = " ".join(f"{key}.{name}=null" for name in clash)
        what = f"{' and '.join(clash)} cannot stand beside chosen and rejected, which have their own"
        yield Problem(key, what, "", drop)


def model_folder_exists(config: Config) -> Iterator[Problem]:
    """A path that no hub id looks like."""
    for key, name in (
        ("model.pretrained_model_name_or_path", config.model.pretrained_model_name_or_path),
        ("model.tokenizer", config.model.tokenizer),
    ):
        asking = {"plan", "prepare", "train", "merge", "evaluate", "generate"} & {*config.stages}
        if not name or not asking or config.job.records or not looks_like_a_path(name):
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            continue
        what = f"{name} is a file, not a model's folder" if path.is_file() else f"no such folder: {name}"
        beside = [str(p.parent) for p in path.parent.glob("*/config.json")]
        close = nearest(str(path), beside)
        yield Problem(
            key, what, "", f"did you mean {key}={close}?" if close else "the folder of your model, or a hub id"
        )


def looks_like_a_path(name: str) -> bool:
    """Whether it can be nothing but a path; a hub id is ``name`` or ``owner/name``."""
    return name.startswith((".", "/", "~")) or (":" not in name and name.count("/") > 1)


def nearest_file(key: str, path: Path, otherwise: str) -> str:
    """The cure for a data file that is not there."""
    folder = path.parent
    neighbours = [str(p) for p in folder.glob("*") if is_data_file(p)] if folder.is_dir() else []
    close = nearest(str(path), neighbours)
    return f"did you mean {key}={close}?" if close else f"give the path of your rows; {otherwise}"


CHECKS = (
    rows_come_from_somewhere,
    sources_have_their_share,
    dataset_files_exist,
    validation_files_exist,
    files_have_no_hub_settings,
    encoding_is_known,
    columns_say_where_the_chat_is,
    model_folder_exists,
)
