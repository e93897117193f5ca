"""Where configuration files lie: ftkit's own ``conf/`` and the user's ``./conf`` beside it; which one sets a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftkit.config.yaml_reader import key_lines, read_defaults

PACKAGE = Path(__file__).resolve().parent.parent
GLOBAL = ("experiment", "local")
"""Folders of ``conf/`` whose files set keys of all groups."""


def shipped_conf() -> Path:
    """The ``conf`` folder that came with ftkit: inside an installed wheel, or at the top of a checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parent / "conf"


def shipped_environment() -> Path:
    """The ``environment`` folder that came with ftkit, which images are made of."""
    installed = PACKAGE / "environment"
    return installed if installed.is_dir() else PACKAGE.parent / "environment"


def user_conf() -> Path | None:
    """The user's own ``conf`` in the working directory; None when there is none or it is the shipped one."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and own.resolve() != shipped_conf().resolve() else None


def conf_dirs() -> list[Path]:
    """Folders searched for options; the first that has a file wins."""
    return [folder for folder in (user_conf(), shipped_conf()) if folder]


def groups() -> list[str]:
    """Names of all config groups, the user's own included."""
    return sorted({d.name for root in conf_dirs() for d in root.iterdir() if d.is_dir() and d.name != "hydra"})


def options(group: str) -> list[str]:
    """Names of a group's options; one in a folder is ``folder/name``."""
    found = {f.relative_to(root / group) for root in conf_dirs() for f in (root / group).rglob("*.yaml")}
    return sorted(f.with_suffix("").as_posix() for f in found)


def default_options() -> dict[str, str]:
    """The option of each group that ``conf/config.yaml`` chooses."""
    entries = [entry for entry in read_defaults(shipped_conf() / "config.yaml") if isinstance(entry, dict)]
    return {group: option for entry in entries for group, option in entry.items() if group in groups() and option}


def option_file(group: str, option: str) -> Path | None:
    """The file of an option, or None. ``group=""`` means the primary config."""
    candidates = (root / group / f"{option}.yaml" for root in conf_dirs())
    return next((path for path in candidates if path.is_file()), None)


def display(path: Path) -> str:
    """A path as a user would write it: relative to the working directory where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def headline(path: Path) -> str:
    """First sentence of an option file's header comment."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    comments = [line.lstrip("# ") for line in lines[:3] if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""


def place_of_key(key: str, choices: dict[str, str | None], named: set[str]) -> str | None:
    """File and line that give ``key`` its value, ``conf/sft/mine.yaml:3``; None when no file sets it.

    Args:
        key: dotted.
        choices: the option of each group.
        named: groups whose option was named on the command line, which wins over the experiment.
    """
    for path, keys in _files_of(key, choices, named):
        lines = key_lines(path)
        if line := lines.get(keys) or lines.get((".".join(keys),)):
            return f"{display(path)}:{line}"
    group = key.partition(".")[0]
    option = choices.get(group)
    path = option_file(group, option) if option else None
    return display(path) if path else None


def _files_of(key: str, choices: dict[str, str | None], named: set[str]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Files that may set a key, the one that wins first, and the key's path in each."""
    parts = tuple(key.split("."))
    group, option = parts[0], choices.get(parts[0])
    own = option_file(group, option) if option else None
    for local in with_parents("local", choices.get("local@_global_")):
        yield local, parts
    if own and group in named:
        yield own, parts[1:]
    for experiment in with_parents("experiment", choices.get("experiment")):
        yield experiment, parts
    if primary := option_file("", "config"):
        yield primary, parts
    for path in with_parents(group, option):
        yield path, parts[1:]
        yield path, parts  # of a file with "@package _global_"


def with_parents(group: str, option: str | None) -> Iterator[Path]:
    """An option's file, then those that its ``defaults`` name, the last of them first; each once."""
    seen: set[Path] = set()

    def visit(name: str) -> Iterator[Path]:
        path = option_file(group, name)
        if path is None or path in seen:
            return
        seen.add(path)
        yield path
        for parent in reversed(read_defaults(path)):
            if isinstance(parent, str) and parent != "_self_":
                yield from visit(parent)

    if option:
        yield from visit(option)


def includes_itself(group: str, option: str) -> Path | None:
    """The file among an option and its parents whose ``defaults`` lead back to it; None if there is none."""

    def visit(name: str, above: tuple[Path, ...]) -> Path | None:
        path = option_file(group, name)
        if path is None:
            return None
        if path in above:
            return path
        parents = [parent for parent in read_defaults(path) if isinstance(parent, str) and parent != "_self_"]
        return next((found for parent in parents if (found := visit(parent, (*above, path)))), None)

    return visit(option, ())
