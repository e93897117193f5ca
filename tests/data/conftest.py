"""Tokenizers, their Harmony, converted rows, and the settings of data sets as fixtures."""

from helpers.data_fixtures import (  # noqa: F401
    convert,
    dataset,
    openai_harmony,
    real,
    real_folder,
    real_harmony,
    tiny,
    tiny_harmony,
)
