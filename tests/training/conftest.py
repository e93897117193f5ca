"""The small model of ``helpers.small_model``, and trainings of it, as fixtures."""

from helpers.run_fixtures import run, whole  # noqa: F401
from helpers.small_model_fixtures import model, model_folder, mxfp4_folder, token_file  # noqa: F401
