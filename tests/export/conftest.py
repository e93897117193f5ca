"""The small model of ``helpers.small_model`` as fixtures."""

from helpers.small_model_fixtures import model, model_folder, mxfp4_folder, token_file  # noqa: F401
