"""The pages of docs/ as a site: every page is in it, and every link leads somewhere; what they say of secrets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from helpers.command import REPOSITORY

DOCS = REPOSITORY / "docs"
DEPLOYMENT = REPOSITORY / "conf" / "deployment"
TYPED_SECRET = re.compile(
    r"--(?:value|token|password|secret|api-key)[ =]\S+|\w*(?:TOKEN|PASSWORD|SECRET|API_KEY)=(?!…)[\w<'\"]\S*"
)
"""On a command line, where ps and the shell's history show it."""


def test_the_site_is_built_without_a_warning_and_holds_every_page(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS).with_suffix("") if page.name != "index.md" else Path()
        content = (tmp_path / "site" / place / "index.html").read_text(encoding="utf-8")
        assert "https://fonts" not in content, "nothing is fetched from elsewhere"


def test_no_command_of_a_page_has_a_secret_on_its_line():
    """Guard: --file /dev/stdin, which keeps the token of the hub out of ps and of the shell's history."""
    pages = [*DOCS.rglob("*.md"), *REPOSITORY.glob("README*.md"), *(REPOSITORY / "ftkit").rglob("*.py")]
    found = {page: TYPED_SECRET.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert {page.name: lines for page, lines in found.items() if lines} == {}
    stored = [page for page in pages if "keyvault secret set" in page.read_text(encoding="utf-8")]
    assert len(stored) == 2 and all("--file /dev/stdin" in page.read_text(encoding="utf-8") for page in stored)


def test_it_is_said_that_the_local_endpoint_asks_nobody_who_they_are():
    assert "knows no authentication" in (DOCS / "serving.md").read_text(encoding="utf-8")
    (line,) = (line for line in (DEPLOYMENT / "local.yaml").read_text().splitlines() if line.startswith("auth_mode:"))
    assert "asks nobody on the machine who they are" in line
