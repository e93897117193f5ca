"""A short soak: kills, two at once and hostile rows lose nothing, mix nothing, and end in words."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.command import REPOSITORY


@pytest.mark.slow
def test_a_short_soak_loses_and_mixes_nothing():
    command = [sys.executable, str(REPOSITORY / "scripts" / "soak"), "--events", "4", "--stages", "prepare,publish"]
    done = subprocess.run([*command, "--seed", "3"], capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "faults: 0" in done.stdout
