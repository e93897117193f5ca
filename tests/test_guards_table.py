"""The table of guards fits code and tests, and scripts/check_guards tells what no test notices."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from helpers.command import REPOSITORY
from helpers.scripts import load_script

TABLE = REPOSITORY / "tests" / "guards.toml"
GUARDS = load_script("check_guards").read_table(TABLE)
NAMES = "tests/test_files.py::test_names_that_leave_their_folder"


def test_each_guard_stands_in_the_code_once():
    assert {guard.name: wrong for guard in GUARDS if (wrong := guard.wrong(REPOSITORY))} == {}


def test_each_guard_has_a_test_that_exists():
    tests: dict[str, set[str]] = {}
    for file in {guard.test.partition("::")[0] for guard in GUARDS}:
        tree = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        tests[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    asked = {guard.name: guard.test.partition("[")[0].split("::") for guard in GUARDS}
    assert [name for name, (file, test) in asked.items() if test not in tests[file]] == []


def test_each_kind_says_what_it_covers_and_has_guards():
    kinds = tomllib.loads(TABLE.read_text(encoding="utf-8"))["kind"]
    assert kinds and all(kind["covers"] and kind["guard"] for kind in kinds)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "check_guards"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_takes_a_guard_out_of_a_copy_and_tells_what_no_test_notices(tmp_path: Path):
    real = next(guard for guard in GUARDS if guard.test == NAMES)
    entries = [
        {"name": real.name, "text": real.text, "without": real.without},
        {"name": "idle", "text": "def is_below(name: str) -> bool:", "without": "def is_below(name):"},
        {"name": "stale", "text": "never written", "without": ""},
    ]
    lines = ["[[kind]]", 'name = "of a test"', 'covers = "nothing"']
    for entry in entries:
        keys = entry | {"file": real.file, "test": NAMES}
        lines += ["[[kind.guard]]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    table = tmp_path / "guards.toml"
    table.write_text("\n".join(lines), encoding="utf-8")
    before = (REPOSITORY / real.file).read_bytes()
    done = run_script("--table", str(table))
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{real.name}  noticed" in done.stdout and "idle  NOT NOTICED" in done.stdout
    assert "stale  TEXT GONE: its text stands in ftkit/files.py no more" in done.stdout
    assert "3 guards in" in done.stdout and (REPOSITORY / real.file).read_bytes() == before
    alone = run_script("--table", str(table), real.name)
    assert alone.returncode == 0, alone.stdout + alone.stderr


def test_a_guard_that_there_is_not_is_told_with_the_nearest():
    done = run_script(GUARDS[0].name + "s")
    assert done.returncode == 1 and f"did you mean '{GUARDS[0].name}'?" in done.stderr
