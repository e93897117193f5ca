"""Each command of README and docs works: it is run, or planned where it would start a job or ask Azure."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.command import REPOSITORY, run_ftkit

from ftkit.assets import asset_path
from ftkit.cli.reference import reference
from ftkit.config.option_files import groups, options
from ftkit.config.stages import BY_NAME

READMES = ("README.md", "README.ja.md")
PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in (*(REPOSITORY / name for name in READMES), *sorted((REPOSITORY / "docs").rglob("*.md")))
}
"""Text by path."""
TRANSLATIONS = {name: f"docs/{Path(name).name}" for name in PAGES if name.startswith("docs/ja/")} | {
    "README.ja.md": "README.md"
}
"""Pages in Japanese, and the page that each one says in English."""
SHOWN = {
    command: shown
    for text in PAGES.values()
    for command, shown in re.findall(
        r"^\$ (python -m \S+.*?)(?:\s+#.*)?$((?:\n(?!\$ |```).*)*)", text, flags=re.MULTILINE
    )
}
"""What follows each command, in the page; of one that stands in several, in the last."""
COMMANDS = [command for command in SHOWN if command.startswith("python -m ftkit ")]


def is_error(shown: str) -> bool:
    """Whether a page shows a command's error, of which the reader is to learn."""
    return re.match(r"\n(error|\d+ problems?) ", shown) is not None


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file whose row has the columns of every example."""
    pages = PAGES["docs/data.md"].partition("## Files")[0] + PAGES["docs/better.md"]
    examples = [json.loads(block) for block in re.findall(r"```json\n(\{.*\})\n```", pages)]
    row = {key: value for example in examples for key, value in example.items()}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "chats.jsonl")
    (tmp_path / "mgsm_ja.tsv").write_text("1+1\t2\n", encoding="utf-8")
    generated = tmp_path / "outputs" / "tiny" / "generate" / "rows"
    generated.mkdir(parents=True)
    shutil.copy(tmp_path / "rows.jsonl", generated / "kept.jsonl")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (experiment,) = re.findall(r"```yaml\n(defaults: \[tiny, _self_\]\n.*?)```", PAGES["README.md"], flags=re.DOTALL)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(experiment, encoding="utf-8")
    (tmp_path / "my-gpt-oss-20b").mkdir()
    shutil.copy(asset_path("package:tiny-gpt-oss") + "/config.json", tmp_path / "my-gpt-oss-20b")
    (tmp_path.parent / "llama.cpp").mkdir(exist_ok=True)
    (tmp_path.parent / "llama.cpp" / "convert_hf_to_gguf.py").touch()
    return tmp_path


@pytest.mark.usefixtures("workspace_named")
@pytest.mark.parametrize("command", [c for c in COMMANDS if not is_error(SHOWN[c])])
def test_command_of_the_docs(command: str, rows: Path):
    arguments = shlex.split(command)[3:]
    if not ("stage=prepare" in arguments and "experiment=tiny" in arguments):
        arguments = [re.sub(r"^stage=[\w,]+$", "stage=plan", a) for a in arguments if a != "check=true"]
        arguments += [] if "--help" in arguments else ["deployment.port=0"]  # 5001 may be taken on this machine
    done = run_ftkit(*arguments, cwd=rows)
    assert done.status == 0, done.err


@pytest.mark.parametrize("command", [c for c in COMMANDS if is_error(SHOWN[c])])
def test_error_of_the_docs(command: str, rows: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("SUBSCRIPTION_ID", "RESOURCE_GROUP", "WORKSPACE_NAME"):
        if SHOWN[command].startswith("\n1 problem") and "workspace" in SHOWN[command]:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, "given")
    if "no-thinking.jsonl" in command:
        (rows / "no-thinking.jsonl").write_text('{"question": "1+1は？", "answer": "2です。"}\n', encoding="utf-8")
    done = run_ftkit(*shlex.split(command)[3:], cwd=rows)
    assert done.status == (1 if SHOWN[command].startswith("\nerror") else 2)
    said = iter(done.err.split())  # columns wrap by the length of the path that stands beside them
    assert not [word for word in SHOWN[command].split() if word not in said], done.err


def test_readme_names_every_stage_group_and_option():
    for stage in BY_NAME:
        assert f"| `{stage}` |" in PAGES["docs/stages.md"]
    by_group = PAGES["docs/stages.md"].partition("\n## Groups\n")[2].splitlines()
    for group in groups():
        row = next(line for line in by_group if line.startswith(f"| `{group}` |"))
        assert all(f"`{option}`" in row for option in options(group))


def test_the_reference_is_up_to_date(in_empty_folder: Path):
    new = "python -m ftkit.cli.reference > docs/reference.md"
    assert PAGES["docs/reference.md"] == reference(), f"keys, defaults or options have changed: {new}"


def test_links_lead_somewhere():
    for name, text in PAGES.items():
        for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
            if link.startswith("http"):
                continue
            path = (REPOSITORY / name).parent.joinpath(link) if link else REPOSITORY / name
            assert path.exists(), f"{name}: {link}"
            if anchor:
                assert anchor in anchors(path.read_text(encoding="utf-8")), f"{name}: {link}#{anchor}"


def anchors(text: str) -> set[str]:
    """Where a link into a page may lead: its headings, as GitHub and MkDocs name them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_its_two_commands_are_there_and_executable():
    for script in ("demo", "test"):
        assert f"$ scripts/{script}" in PAGES["README.md"]
        assert (REPOSITORY / "scripts" / script).stat().st_mode & 0o111


@pytest.mark.parametrize("japanese", TRANSLATIONS)
def test_what_is_typed_and_shown_is_the_same_in_japanese(japanese: str):
    """Commands, rows, files and outputs; comments are in the reader's language."""
    assert blocks(PAGES[japanese]) == blocks(PAGES[TRANSLATIONS[japanese]])


def blocks(text: str) -> list[str]:
    found = re.findall(r"^```.*?^```$", text, flags=re.MULTILINE | re.DOTALL)
    said = [block for block in found if "ftkit/cli/" not in block]  # the tree of folders, which is prose
    return [re.sub(r"\s+# .*$", "", block, flags=re.MULTILINE) for block in said]


@pytest.mark.parametrize("japanese", TRANSLATIONS)
def test_japanese_pages_have_the_tables_and_figures_of_the_english_ones(japanese: str):
    english = TRANSLATIONS[japanese]
    assert table_words(PAGES[japanese]) == table_words(PAGES[english])
    assert len(anchors(PAGES[japanese])) == len(anchors(PAGES[english]))


def table_words(text: str) -> list[set[str]]:
    """What no translation changes in each row of a table: numbers, and all that is set as code but file names."""
    rows = [line for line in text.splitlines() if line.startswith("|") and "](docs/" not in line]
    return [set(re.findall(r"(?<![\w.])\d[\d,.]*\d|`[^`<]+`", row)) for row in rows]


def test_errors_that_the_docs_name_are_those_of_the_code():
    """The text between dots of what the tables of errors.md quote first in a row."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "ftkit").rglob("*.py"))
    quoted = re.findall(r"^\| `([^`]+)` \| ", PAGES["docs/errors.md"], flags=re.MULTILINE)
    assert len(quoted) > 10
    for text in quoted:
        assert all(part.strip(" ,") in source for part in text.split("…")), text
