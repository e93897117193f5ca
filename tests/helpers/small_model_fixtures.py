"""The small model of ``small_model.py`` as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GptOssForCausalLM

from helpers.small_model import save_mxfp4_copy, save_small_model, save_token_rows, small_config

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture(scope="session")
def mxfp4_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with its experts in MXFP4."""
    return save_mxfp4_copy(model_folder, tmp_path_factory.mktemp("mxfp4") / "model")


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 rows of 10 to 40 tokens; 16 of them for training."""
    lengths = [10 + (7 * i) % 31 for i in range(20)]
    return save_token_rows(tmp_path_factory.mktemp("rows") / "tokens.parquet", lengths)


@pytest.fixture
def model() -> GptOssForCausalLM:
    """In float32, eager attention, in evaluation mode."""
    torch.manual_seed(0)
    loaded = GptOssForCausalLM._from_config(small_config(), attn_implementation="eager", dtype=torch.float32)
    return loaded.eval()
