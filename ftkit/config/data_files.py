"""Which files ``dataset.path`` names: one, those of a folder or a pattern; none if it is a data set on the hub."""

from __future__ import annotations

from pathlib import Path

from ftkit.assets import asset_path

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PATTERN_CHARACTERS = "*?["


def data_files(path: str) -> list[Path] | None:
    """The files to read, sorted by path; empty when a local path holds none; None for a hub id.

    A folder is searched whole. Files whose names begin with a dot are left out.

    Raises:
        StageError: nothing of that name ships with ftkit.
    """
    local = Path(asset_path(path)).expanduser()
    if local.is_file() and is_data_file(local):
        return [local]
    if local.is_dir():
        return sorted(p for p in local.rglob("*") if is_data_file(p) and not p.is_dir())
    if is_pattern(path):
        found = Path(local.anchor or ".").glob(str(local.relative_to(local.anchor)))
        return sorted(p for p in found if is_data_file(p) and not p.is_dir())
    looks_local = is_data_file(local) or path.startswith((".", "/", "~"))
    return [] if looks_local else None


def is_pattern(path: str) -> bool:
    return any(character in path for character in PATTERN_CHARACTERS)


def is_data_file(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return name.endswith(DATA_SUFFIXES) and not name.startswith(".") and name != path.suffix
