"""Imports point one way: from the command line down to files and errors, folder by folder, and never in a circle."""

from __future__ import annotations

import ast
import re
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


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ftkit":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


def test_no_import_points_up() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert rooms <= floor.keys(), f"say on which floor it is: {sorted(rooms - floor.keys())}"
    up = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        for other in imports_of(path) & floor.keys() - {room, "__version__"}:
            if floor[other] >= floor[room] and (room, other) not in NEIGHBOURS:
                up.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not up, "\n".join(up)


NAME_THE_FAMILY = {
    "families/__init__.py",  # the registry
    "families/gpt_oss.py",  # its description
    "models/experts.py",
}
"""Modules that name gpt-oss beside its own, its chat format and the files that ship."""


def test_one_family_is_known_by_name_in_its_own_modules_alone() -> None:
    """What other modules need of a family they ask ``Family`` for."""
    own = ("models/gpt_oss/", "chat/", "assets/")
    modules = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    found = {name for name, text in modules.items() if re.search("gpt.oss", text, re.I) and not name.startswith(own)}
    assert found <= NAME_THE_FAMILY
