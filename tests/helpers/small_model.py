"""A random gpt-oss, small enough that a step takes milliseconds, with a tokenizer and token rows of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

from ftkit.config.resolve import resolve
from ftkit.config.schema import Config
from ftkit.models.mxfp4 import quantize_mxfp4

SPECIAL = ("<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>")
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 288,
}


def small_config(**changes: Any) -> GptOssConfig:
    """The shape with a sliding window of 8 and the published router_aux_loss_coef."""
    return GptOssConfig(
        **SHAPE
        | {
            "sliding_window": 8,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "router_aux_loss_coef": 0.9,
            "initializer_range": 0.2,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
        | changes
    )


def small_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and Harmony's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|return|>", pad_token="<|endoftext|>", chat_template="{{ messages }}"
    )


def save_small_model(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    GptOssForCausalLM(small_config(**changes)).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def save_token_rows(path: Path, lengths: list[int], *, split: list[str] | None = None, seed: int = 0) -> Path:
    """Rows of random tokens, their first third without loss; every fifth is held out if ``split`` is not given."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(len(SPECIAL), SHAPE["vocab_size"], n).tolist() for n in lengths]
    prompts = [max(1, n // 3) for n in lengths]
    table = pa.table(
        {
            "row": pa.array([i + 1 for i in range(len(lengths))], pa.int64()),
            "split": split or ["heldout" if i % 5 == 4 else "train" for i in range(len(lengths))],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "labels": pa.array(
                [[-100] * p + row[p:] for row, p in zip(ids, prompts, strict=True)], pa.list_(pa.int32())
            ),
            "prompt_length": pa.array(prompts, pa.int32()),
        }
    )
    pq.write_table(table, path)
    return path


def save_pairs(path: Path, lengths: list[int], *, split: list[str] | None = None, seed: int = 1) -> Path:
    """Rows as ``save_token_rows`` writes them, each with a worse answer of 3 to 12 random tokens beside it."""
    table = pq.read_table(save_token_rows(path, lengths, split=split, seed=seed))
    rng = np.random.default_rng(seed)
    worse = [rng.integers(len(SPECIAL), SHAPE["vocab_size"], rng.integers(3, 13)).tolist() for _ in lengths]
    pq.write_table(table.append_column("rejected_ids", pa.array(worse, pa.list_(pa.int32()))), path)
    return path


def small_run(model: Path, *overrides: str) -> Config:
    """The tiny experiment, put on the small model."""
    shape = [f"model.architecture.{key}={value}" for key, value in SHAPE.items()]
    return resolve(
        ["experiment=tiny", f"model.pretrained_model_name_or_path={model}", *shape, "sft.max_length=64",
        "sft.per_device_train_batch_size=2",
         "sft.num_train_epochs=2", "sft.save_steps=3", "sft.learning_rate=1e-2", "sft.eval_strategy=no", *overrides]
    )  # fmt: skip


def save_mxfp4_copy(dense: Path, folder: Path) -> Path:
    """The same model in the format of the published checkpoints: experts as MXFP4 blocks and scales."""
    shutil.copytree(dense, folder)
    weights = load_file(dense / "model.safetensors")
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        weights[f"{name}_blocks"], weights[f"{name}_scales"] = quantize_mxfp4(weights.pop(name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
