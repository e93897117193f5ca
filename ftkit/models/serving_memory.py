"""Memory that serving takes of the GPUs of a machine: weights in the format they are served in, and keys and values.

Added up from the model's shape, not measured; what reading a long prompt takes for a moment comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftkit.assets import asset_path
from ftkit.config.schema import Config
from ftkit.families import family_of
from ftkit.models.training_memory import GIB, MXFP4_BYTES, model_parameters

SCORE_AT_A_TIME = 32
"""Requests that score.py answers together."""
VLLM_SHARE = 0.9
"""Part of a GPU that vLLM takes by default: its gpu_memory_utilization."""
BFLOAT16_SINCE = 8.0
"""Compute capability from which GPUs have bfloat16."""
MXFP4_SINCE = 9.0


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a machine.

    Attributes:
        kind: for the user.
        count: of them.
        gib: memory of each.
        capability: NVIDIA's compute capability.
    """

    kind: str
    count: int
    gib: float
    capability: float


@dataclass(frozen=True)
class Serving:
    """What one instance holds, in GiB over all of its GPUs.

    Attributes:
        weights: of the model, ``stored`` as.
        cache: keys and values of ``requests`` of ``tokens`` at a time.
    """

    weights: float
    stored: str
    cache: float
    requests: int
    tokens: int

    @property
    def total(self) -> float:
        return self.weights + self.cache


def serving(config: Config) -> Serving:
    """What ``deployment.server`` would hold of the merged model."""
    a, settings = config.model.architecture, config.deployment
    parameters, experts = model_parameters(a), _expert_parameters(config)
    per_token = a.num_hidden_layers * 2 * a.num_key_value_heads * a.head_dim * 2
    if settings.server == "score":
        requests = min(settings.max_concurrent_requests_per_instance, SCORE_AT_A_TIME)
        tokens = min(settings.max_input_tokens + settings.max_new_tokens, a.max_position_embeddings)
        return Serving(2 * parameters / GIB, "bfloat16", requests * tokens * per_token / GIB, requests, tokens)
    packed = config.merge.format == "mxfp4"
    weights = 2 * (parameters - experts) + MXFP4_BYTES * experts if packed else 2 * parameters
    tokens = int(settings.engine_args.get("max_model_len") or a.max_position_embeddings)
    kept = tokens if (window := family_of(a.model_type).window) is None else (tokens + min(window, tokens)) / 2
    return Serving(weights / GIB, "MXFP4 and bfloat16" if packed else "bfloat16", kept * per_token / GIB, 1, tokens)


def base_bytes(config: Config) -> tuple[int, bool]:
    """Size of the base model's checkpoint, and whether it was looked at; else it is added up from the shape."""
    model = config.model
    folder = Path(model.folder or asset_path(model.pretrained_model_name_or_path)).expanduser()
    if folder.is_dir():
        return sum(path.stat().st_size for path in folder.glob("*.safetensors")), True
    parameters, experts = model_parameters(model.architecture), _expert_parameters(config)
    packed = experts if family_of(model.architecture.model_type).mxfp4 else 0
    return int(2 * (parameters - packed) + MXFP4_BYTES * packed), False


def problems(config: Config, gpus: Gpus) -> Iterator[str]:
    """Why these GPUs will not serve the model as configured, each with what would."""
    needs, has = serving(config), gpus.count * gpus.gib
    is_vllm, size = config.deployment.server == "vllm", f"{gpus.count} × {gpus.kind}, {gpus.gib:g} GiB each"
    usable = has * VLLM_SHARE if is_vllm else has
    if needs.weights > usable:
        smaller = "" if is_vllm and config.merge.format == "mxfp4" else ", or deployment=vllm merge.format=mxfp4"
        larger = f"a larger deployment.instance_type{smaller}"
        yield f"serving: {needs.weights:.1f} GiB of weights will not fit in {size}; {larger}"
    elif needs.total > usable:
        key = (
            "deployment.engine_args.max_model_len=<fewer>"
            if is_vllm
            else "deployment.max_concurrent_requests_per_instance=<fewer>, or a smaller deployment.max_input_tokens"
        )
        yield (
            f"serving: {needs.weights:.1f} GiB of weights and {needs.cache:.1f} GiB of keys and values for "
            f"{needs.requests} × {needs.tokens:,} tokens will not fit in {size}; {key}"
        )
    if is_vllm and gpus.capability < BFLOAT16_SINCE:
        yield (
            f"serving: {gpus.kind} (compute capability {gpus.capability:g}) has no bfloat16, in which vLLM serves it; "
            "deployment.instance_type=Standard_NC24ads_A100_v4"
        )


def in_words(config: Config, gpus: Gpus | None) -> str:
    """For plan: what serving takes, of what the machine has."""
    needs = serving(config)
    of = f"{gpus.count * gpus.gib:g} GiB of {gpus.count} × {gpus.kind}" if gpus else "memory"
    parts = [
        f"weights {needs.weights:.1f} in {needs.stored}",
        f"keys and values {needs.cache:.1f} for {needs.requests} × {needs.tokens:,} tokens",
    ]
    if config.deployment.server == "score" and config.merge.format != "bf16":
        parts.append(f"score unpacks or rounds {config.merge.format} to bfloat16")
    if gpus and config.deployment.server == "vllm" and config.merge.format == "mxfp4" and gpus.capability < MXFP4_SINCE:
        parts.append(f"{gpus.kind} has no products in 4 bits: vLLM keeps the weights packed and computes in 16")
    return f"{needs.total:.1f} of {of}: {', '.join(parts)}; added up, not measured"


def _expert_parameters(config: Config) -> int:
    a = config.model.architecture
    return a.num_hidden_layers * (a.num_local_experts or 1) * 3 * a.hidden_size * a.intermediate_size
