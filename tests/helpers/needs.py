"""What a test needs of the machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def not_installed(what: str, cure: str) -> NoReturn:
    """Leave a test out for want of something that can be installed; in CI, which installs it, the test fails."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}: {cure}")
    pytest.skip(f"{what}: {cure}")
