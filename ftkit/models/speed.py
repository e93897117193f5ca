"""How many tokens a second a GPU trains on, from the products and the memory traffic of a step; imports no torch.

The efficiencies by GPU in ``gpu_rates.json`` were fitted to what ``scripts/bench_train`` measured. They hold for fused
layers; for anything else there is no prediction.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ftkit.config.compute import AzureCompute
from ftkit.config.groups import Architecture
from ftkit.config.schema import Config
from ftkit.families import family_of
from ftkit.models.training_memory import MXFP4_BYTES, adapter_parameters, kept_attention_layers
from ftkit.models.vm_gpus import gpus_of
from ftkit.packages import FLASH_ATTENTION_4, version_of

BACKWARD_SCORES = 2.5
"""Products of the scores' backward pass, as multiples of the forward pass's."""
OPTIMIZER_BYTES = 40
"""Read and written for a trained parameter in an optimiser step: weight, gradient, two moments, norm."""


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches.

    Attributes:
        name: ``H200``.
        tflops: dense bfloat16 products a second in 10¹², from its data sheet.
        tb_per_s: memory bandwidth in 10¹² bytes a second, from its data sheet.
        products: share of ``tflops`` in the products of layers and vocabulary.
        fp8: how much faster the experts' products are in FP8; 0 where the GPU has none.
        fp8_linear: how much faster attention's and a dense MLP's are, what rounds their operands included;
            measured on an H200 alone.
        scores: share of it in attention's scores, by torch's flash attention.
        scores_fa4: the same by FlashAttention 4; 0 where that does not run.
        unpacking: share of ``tb_per_s`` while experts in MXFP4 are unpacked.
        other_us: microseconds of all else for a token in a layer of experts, forward and backward.
        dense_us: the same in a layer without experts, which sorts no tokens; measured on an H200 alone.
        replayed_us: the same for a token in a layer that is computed again.
        batch_ms: milliseconds of a forward and backward pass, however few tokens it has.
        host_ms: milliseconds in which the host sends a layer's work, forward or backward.
        host_replayed_ms: the same where it is computed again.
        host_mxfp4_ms: what unpacking adds to that.
        host_step_ms: of an optimiser step, for a layer, which counts where the GPU waits for the host.
        measured: where and how; of a GPU that was not, whose efficiencies it got.
    """

    name: str
    tflops: float
    tb_per_s: float
    products: float
    fp8: float
    fp8_linear: float
    scores: float
    scores_fa4: float
    unpacking: float
    other_us: float
    dense_us: float
    replayed_us: float
    batch_ms: float
    host_ms: float
    host_replayed_ms: float
    host_mxfp4_ms: float
    host_step_ms: float
    measured: str


def rates_of(config: Config) -> Rates | None:
    """The rates of the GPU that trains; None where it is none of those known."""
    found = gpu_of(config)
    return _known().get(found) if found else None


def reference_rates() -> Rates:
    """Those of an H100, to tell faster settings from slower ones on a GPU that is not known."""
    return _known()["H100"]


def gpu_of(config: Config) -> str | None:
    """``H100 NVL``, by the VM size, or by nvidia-smi where this machine trains; None where neither says one known."""
    if not isinstance(config.compute, AzureCompute):
        name = _name_here()
        return next((known for known in sorted(_known(), key=len, reverse=True) if known in name), None)
    gpus = gpus_of(config.compute.instance_type)
    return gpus.kind if gpus and gpus.kind in _known() else None


def runs_fa4(config: Config, rates: Rates) -> bool:
    """Whether FlashAttention 4 computes attention: in jobs, whose image has it, and here if it is installed."""
    if not rates.scores_fa4 or config.model.flash_attention == "torch":
        return False
    return isinstance(config.compute, AzureCompute) or _is_installed(FLASH_ATTENTION_4)


def seconds_per_step(config: Config, rates: Rates, *, document: int | None = None) -> float:
    """Of one optimiser step of a configuration that leaves nothing open, all rows full.

    Args:
        document: mean tokens of a document, where several are packed in a row; a row's if not given.
    """
    sft, a = config.sft, config.model.architecture
    tokens = sft.rows_at_a_time * sft.max_length
    gpu, host = _seconds(a, rates, tokens, document or sft.max_length, config)
    optimizer = adapter_parameters(config).total * OPTIMIZER_BYTES / (rates.tb_per_s * 1e12)
    batches = sft.gradient_accumulation_steps
    return max(batches * gpu + optimizer, batches * host + a.num_hidden_layers * rates.host_step_ms / 1e3)


def tokens_per_second(config: Config, rates: Rates, *, document: int | None = None) -> float:
    """Of all GPUs together, if gradients travel while they compute."""
    tokens = config.rows_per_step * config.sft.max_length
    return tokens / seconds_per_step(config, rates, document=document)


def _seconds(a: Architecture, rates: Rates, tokens: int, document: int, config: Config) -> tuple[float, float]:
    """The GPU's and the host's, of one forward and backward pass."""
    recomputed = config.sft.recomputed_layers(a.num_hidden_layers)
    experts = (a.num_experts_per_tok or 1) * 3 * a.hidden_size * a.intermediate_size
    attention = a.hidden_size * a.head_dim * (2 * a.num_attention_heads + 2 * a.num_key_value_heads)
    in_fp8 = config.model.products != "dtype" and rates.fp8 > 0
    of_attention = (4 * a.num_hidden_layers + 2 * recomputed) * attention
    of_experts = 4 * a.num_hidden_layers * experts + 2 * recomputed * experts * 2 / 3  # a replay leaves the last out
    if in_fp8 and config.model.products == "fp8_all":
        of_attention /= rates.fp8_linear
    if in_fp8:
        of_experts /= rates.fp8 if a.num_local_experts else rates.fp8_linear
    products = of_attention + of_experts + 4 * a.vocab_size * a.hidden_size
    full = 4 * a.num_attention_heads * a.head_dim * document / 2
    window = family_of(a.model_type).window
    windowed = full if window is None else 4 * a.num_attention_heads * a.head_dim * min(window, document / 2)
    scores = (full + windowed) / 2 * (a.num_hidden_layers * (1 + BACKWARD_SCORES) + recomputed)
    if config.sft.keeps_attention:
        scores -= full * kept_attention_layers(config)
    peak = rates.tflops * 1e12
    width = a.hidden_size / 2880
    of_scores = rates.scores_fa4 if runs_fa4(config, rates) else rates.scores
    gpu = rates.batch_ms / 1e3 + tokens * (products / (peak * rates.products) + scores / (peak * of_scores))
    other = rates.other_us if a.num_local_experts else rates.dense_us
    gpu += tokens * width * (a.num_hidden_layers * other + recomputed * rates.replayed_us) / 1e6
    passes = 2 * a.num_hidden_layers
    host_ms = passes * rates.host_ms + recomputed * rates.host_replayed_ms
    if config.model.weights == "mxfp4":
        host_ms += (passes + recomputed) * rates.host_mxfp4_ms
        unpacked = (a.num_local_experts or 0) * 3 * a.hidden_size * a.intermediate_size
        unpacked *= MXFP4_BYTES + (1 if in_fp8 else 2)
        gpu += (passes + recomputed) * unpacked / (rates.tb_per_s * 1e12 * rates.unpacking)
    return gpu, host_ms / 1e3


@cache
def _is_installed(package: str) -> bool:
    return version_of(package) is not None


@cache
def _known() -> dict[str, Rates]:
    path = Path(__file__).with_name("gpu_rates.json")
    return {name: Rates(name, **found) for name, found in json.loads(path.read_text(encoding="utf-8")).items()}


@cache
def _name_here() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
