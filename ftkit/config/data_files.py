"""Which files ``dataset.path`` names, the split that each belongs to, and what is left out; a hub id names none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ftkit.assets import asset_path
from ftkit.files import user_path

JSON = (".jsonl", ".ndjson", ".json")
DELIMITED = (".csv", ".tsv")
WORKBOOKS = (".xlsx", ".xlsm")
TABLES = (".parquet", ".arrow", ".feather")
COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
READ = f"{', '.join((*JSON, *DELIMITED))} (each also with {', '.join(COMPRESSED)}), {', '.join((*WORKBOOKS, *TABLES))}"
"""The kinds of file that are read, for messages."""
PATTERN_CHARACTERS = "*?["
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation", "heldout"),
    "test": ("test", "testing"),
}
"""The splits, and the words that name each at the beginning or end of a file's or folder's name."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class LeftOut:
    """Something below ``dataset.path`` that is not read.

    Attributes:
        name: relative to the folder that was searched; of a folder with a slash at its end.
        why: in a few words.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


@dataclass(frozen=True)
class DataFiles:
    """What a local path names.

    Attributes:
        files: of the wanted split, sorted by path; a folder that ``save_to_disk`` made counts as a file.
        validation: files of the split validation beside those of train.
        left_out: what lies there and is not read.
        splits: the splits that the names tell, ``train`` among them for files whose names tell none.
    """

    files: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    splits: tuple[str, ...] = ("train",)

    def on_disk(self) -> Iterator[Path]:
        """Every file that is opened."""
        for path in (*self.files, *self.validation):
            yield from sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else (path,)


def find_files(path: str, split: str = "train") -> DataFiles | None:
    """Find the files of one split; with those of train come those of validation.

    A folder is searched whole, but for folders and files whose names begin with a dot.

    Args:
        path: a file, a folder, a pattern, ``package:<file>``, or a hub id.
        split: the wanted split.

    Returns:
        None for a hub id, which is nothing that lies here.

    Raises:
        StageError: nothing of that name ships with ftkit, or it cannot be a path.
    """
    try:
        local = user_path(asset_path(path), "dataset.path")
        if local.is_dir():
            return _of_split(local, *_searched(local), split)
        if os.path.lexists(local):
            return _single(local, split)
        if is_pattern(path):
            folder, pattern = _pattern(local)
            found = sorted(p for p in folder.glob(pattern) if not p.is_dir())
            return _of_split(folder, *_sorted_out(folder, found), split)
    except (OSError, ValueError):  # a pattern that glob does not take
        return DataFiles(())
    return None if HUB_ID.fullmatch(path) and not is_data_file(local) else DataFiles(())


def find_validation(path: str | None, *, on_hub: bool) -> DataFiles | None:
    """Find the user's own held-out rows.

    Args:
        path: as ``dataset.validation`` names them.
        on_hub: whether the other rows are on the hub.

    Returns:
        None for a split of the hub's data set.
    """
    if path is None:
        return DataFiles(())
    found = find_files(path, "validation")
    if found is not None and not found.files:
        found = find_files(path) or found
    if on_hub and not (found and found.files) and not is_data_file(Path(path)):
        return None
    return found or DataFiles(())


def is_pattern(path: str) -> bool:
    return any(character in path for character in PATTERN_CHARACTERS)


def is_data_file(path: Path) -> bool:
    """Whether the name is one of a kind that is read."""
    return bool(kind_of(path)) and not _is_hidden(path.name)


def kind_of(path: Path) -> str:
    """The ending that tells how a file is read, in lower case and without compression; empty for none that is read."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings and endings[-1] in COMPRESSED:
        return endings[0] if endings[0] in (*JSON, *DELIMITED) else ""
    return endings[-1] if endings and endings[-1] in (*JSON, *DELIMITED, *WORKBOOKS, *TABLES) else ""


def compression_of(path: Path) -> str:
    """``.gz`` or another of ``COMPRESSED``; empty for none."""
    ending = path.suffix.lower()
    return ending if ending in COMPRESSED else ""


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``datasets.Dataset.save_to_disk`` made the folder."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def split_named(name: str) -> str | None:
    """The split that a name begins or ends with: test-00000-of-00002, my_dev."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((s for s, named in SPLITS.items() if words and {words[0], words[-1]} & set(named)), None)


def _single(path: Path, split: str) -> DataFiles:
    if why := _why_not(path):
        return DataFiles((), left_out=(LeftOut(path.name, why),))
    named = split_named(path.name.split(".")[0])
    return DataFiles((path,), splits=tuple(dict.fromkeys(("train", *([named] if named else ())))))


def _pattern(path: Path) -> tuple[Path, str]:
    """The folder before the first part that is a pattern, and the rest."""
    at = next(i for i, part in enumerate(path.parts) if is_pattern(part))
    return Path(*path.parts[:at]), str(Path(*path.parts[at:]))


def _searched(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """Data files below a folder, and what else lies there."""
    if is_saved_dataset(folder):
        return [folder], []
    files: list[Path] = []
    left_out: list[LeftOut] = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        for name in sorted(folders):
            if _is_hidden(name):
                left_out.append(LeftOut(f"{(here / name).relative_to(folder).as_posix()}/", "hidden"))
            elif is_saved_dataset(here / name):
                files.append(here / name)
            else:
                continue
            folders.remove(name)
        found, others = _sorted_out(folder, (here / name for name in sorted(names) if name != "dataset_dict.json"))
        files += found
        left_out += others
    return sorted(files), left_out


def _sorted_out(folder: Path, paths: Iterable[Path]) -> tuple[list[Path], list[LeftOut]]:
    files: list[Path] = []
    left_out: list[LeftOut] = []
    for path in paths:
        below = path.relative_to(folder)
        if why := "hidden" if any(map(_is_hidden, below.parts)) else _why_not(path):
            left_out.append(LeftOut(below.as_posix(), why))
        else:
            files.append(path)
    return files, left_out


def _is_hidden(name: str) -> bool:
    """By a dot, as what Excel keeps while a workbook is open, or as what macOS puts into archives."""
    return name.startswith((".", "~$")) or name == "__MACOSX"


def _why_not(path: Path) -> str:
    """Why a file is not read; empty when it is. A link to nowhere is, and counts as a file that cannot be opened."""
    if not kind_of(path):
        return f"{''.join(path.suffixes[-2:]) or 'without an ending'} is not a kind that is read"
    return "" if path.is_file() or not path.exists() else "not a regular file"


def _of_split(folder: Path, files: list[Path], left_out: list[LeftOut], split: str) -> DataFiles:
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path.relative_to(folder)) or "train", []).append(path)
    wanted = split_named(split) or split
    besides = ("validation",) if wanted == "train" else ()
    for other, paths in by_split.items():
        if other != wanted and other not in besides:
            why = f"split {other}; dataset.split={other} reads it"
            left_out = left_out + [LeftOut(path.relative_to(folder).as_posix(), why) for path in paths]
    beside = tuple(by_split.get("validation", ())) if besides else ()
    return DataFiles(tuple(by_split.get(wanted, ())), beside, tuple(left_out), tuple(by_split) or ("train",))


def _split_of(path: Path) -> str | None:
    """The split that the file's own name tells, or the nearest folder's."""
    names = [path.name.split(".")[0], *(parent.name for parent in path.parents)]
    return next(filter(None, map(split_named, names)), None)
