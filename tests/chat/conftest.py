"""Tokenizers, their Harmony, and the settings of data sets as fixtures."""

import pytest
from helpers.data_fixtures import (  # noqa: F401
    dataset,
    openai_harmony,
    real,
    real_folder,
    real_harmony,
    tiny,
    tiny_harmony,
)


@pytest.fixture(scope="session")
def tokenizer(tiny):  # noqa: F811
    """The tiny model's."""
    return tiny
