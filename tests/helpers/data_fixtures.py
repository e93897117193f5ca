"""The real vocabulary, an independent Harmony, and data sets as the configuration describes them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ftkit.assets import asset_path
from ftkit.chat.harmony_render import HarmonyRenderer, checked_harmony
from ftkit.config.dataset import Dataset
from ftkit.config.resolve import resolve
from ftkit.data.conversations import Converter
from ftkit.data.readers import RawRow
from ftkit.data.refused import Account
from helpers import real_tokenizer

DATE = "2026-01-01"


@pytest.fixture(scope="session")
def real_folder() -> Path:
    """A folder with gpt-oss's own tokenizer."""
    return real_tokenizer.build(real_tokenizer.home())


@pytest.fixture(scope="session")
def real(real_folder: Path):
    return AutoTokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="session")
def tiny():
    return AutoTokenizer.from_pretrained(asset_path("package:tiny-gpt-oss"))


@pytest.fixture(scope="session")
def real_harmony(real) -> HarmonyRenderer:
    return checked_harmony(real, current_date=DATE)


@pytest.fixture(scope="session")
def tiny_harmony(tiny) -> HarmonyRenderer:
    return checked_harmony(tiny, current_date=DATE)


@pytest.fixture(scope="session")
def openai_harmony(real_folder: Path):
    """OpenAI's own implementation, in Rust, with its own tokenizer."""
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(real_folder.parent)
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


@pytest.fixture
def dataset():
    """``dataset("sharegpt", path, "dataset.thinking=optional")``: the settings of an option."""

    def settings(option: str, path: Path | str, *overrides: str):
        return _settings(Path.cwd(), option, *overrides).model_copy(update={"path": str(path)})

    return settings


@cache
def _settings(folder: Path, option: str, *overrides: str) -> Dataset:
    """As they are composed in a folder; composing takes longer than most tests that need them."""
    shipped = ["experiment=tiny", f"dataset={option}", "dataset.path=package:sample.jsonl", "stage=plan"]
    return resolve([*shipped, *overrides]).dataset


@pytest.fixture
def convert(dataset):
    """Converts one row; the settings' reasoning language is left out unless a test sets it."""

    def converted(option: str, row: dict, *overrides: str, account: Account | None = None):
        settings = dataset(option, "rows.jsonl", "dataset.reasoning_language=null", *overrides)
        return Converter(settings, account).conversation(RawRow(1, "rows.jsonl:1", row))

    return converted
