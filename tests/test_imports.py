"""Imports point one way, from the command line down to files and errors, folder by folder, and never in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import ftkit

PACKAGE = Path(ftkit.__file__).parent
FLOORS = (
    {"errors", "__init__"},
    {"processes", "packages", "assets", "library_logs", "file_locks", "translation"},
    {"files"},
    {"html", "digests", "locks"},
    {"families"},
    {"records"},
    {"config"},
    {"console", "chat"},
    {"data", "serving"},
    {"models"},
    {"training"},
    {"export", "evaluation", "generation", "reports"},
    {"platforms"},
    {"pipeline", "stages"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the ground up; a room imports from floors below it and from its own folder alone."""
NEIGHBOURS = {
    ("stages", "pipeline"),
    ("pipeline", "stages"),
    ("export", "evaluation"),
    ("reports", "evaluation"),
    ("generation", "evaluation"),
}
"""Rooms of one floor that may see each other: stages and the pipeline that runs them, pages and what they show."""


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path, *, anywhere: bool = True) -> set[str]:
    """Modules of the package that one imports, or what it takes from them: ``models.lora.bare_model``.

    Args:
        anywhere: those of functions too, which import later.
    """
    return set(_imported(ast.parse(path.read_text(encoding="utf-8")).body, anywhere))


def _imported(nodes: Iterable[ast.AST], anywhere: bool) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.If(test=test) if "TYPE_CHECKING" in ast.dump(test):
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not anywhere:
                continue
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "ftkit":
                yield from (f"{module}.{each.name}".removeprefix("ftkit.") for each in names)
            case ast.Import(names=names):
                yield from (each.name.removeprefix("ftkit.") for each in names if each.name.split(".")[0] == "ftkit")
        yield from _imported(ast.iter_child_nodes(node), anywhere)


def test_no_import_points_up() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms <= floor.keys(), f"say on which floor it is: {sorted(rooms - floor.keys())}"
    up = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        for other in {name.split(".")[0] for name in imports_of(path)} & floor.keys() - {room}:
            if floor[other] >= floor[room] and (room, other) not in NEIGHBOURS:
                up.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not up, "\n".join(up)


def test_no_module_imports_itself_by_others() -> None:
    """What functions import is left out: a registry imports its entries when they are asked for, as ``chat.format``."""
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    below = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imports_of(path, anywhere=False)}
        for module, path in modules.items()
    }
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


NAME_THE_FAMILY = {
    "families/__init__.py",  # the registry
    "families/gpt_oss.py",  # its description
}
"""Modules that name gpt-oss beside its own, its chat format and the files that ship."""


def test_one_family_is_known_by_name_in_its_own_modules_alone() -> None:
    """What other modules need of a family they ask ``Family`` for."""
    own = ("models/gpt_oss/", "chat/", "assets/")
    modules = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    found = {name for name, text in modules.items() if re.search("gpt.oss", text, re.I) and not name.startswith(own)}
    assert found == NAME_THE_FAMILY
