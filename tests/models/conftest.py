"""The small model of ``helpers.small_model`` as fixtures, and Triton's interpreter."""

from pathlib import Path

import pytest
from helpers.interpreter import Interpreted, interpreter_in
from helpers.small_model_fixtures import model, model_folder, mxfp4_folder, token_file  # noqa: F401


@pytest.fixture(scope="session")
def triton_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Triton of ``interpreted`` lies."""
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="session")
def interpreted(triton_folder: Path) -> Interpreted:
    """Runs ``interpreted.py``."""
    return interpreter_in(triton_folder)
