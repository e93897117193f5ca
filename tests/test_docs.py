"""The pages of docs/ as a site: every page is in it, and every link leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.command import REPOSITORY

DOCS = REPOSITORY / "docs"


def test_the_site_is_built_without_a_warning_and_holds_every_page(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS).with_suffix("") if page.name != "index.md" else Path()
        content = (tmp_path / "site" / place / "index.html").read_text(encoding="utf-8")
        assert "https://fonts" not in content, "nothing is fetched from elsewhere"
