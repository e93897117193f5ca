"""A model whose answers end only when they are as long as they may be."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ftkit.chat.harmony_parse import HarmonyParser

ENDLESS = {"prompt": "1足す1は？", "max_new_tokens": 3000, "stream": True}


def make_endless(folder: Path) -> None:
    """Take its stop tokens from a model: a request then runs for as many tokens as it asks for."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"][HarmonyParser(AutoTokenizer.from_pretrained(folder)).stop_ids] = 0
    save_file(tensors, weights, metadata={"format": "pt"})
