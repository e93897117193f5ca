"""The small model of ``helpers.small_model`` as a fixture."""

from helpers.small_model_fixtures import model  # noqa: F401
