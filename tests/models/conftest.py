"""The small model of ``helpers.small_model`` as fixtures, and Triton's interpreter."""

import pytest
from helpers.interpreter import Interpreted, interpreter_in
from helpers.small_model_fixtures import model, model_folder, mxfp4_folder, token_file  # noqa: F401


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Interpreted:
    """Runs ``interpreted.py``."""
    return interpreter_in(tmp_path_factory.mktemp("triton"))
