"""How many parameters LoRA trains and how much GPU memory a step needs, from the configuration; imports no torch.

The constants were fitted to peaks measured on one H100 80GB (PEFT 0.21, transformers 5.17, torch 2.11): five settings
of ``scripts/bench_train`` with 6 layers, and 24 layers with eager attention. They give these within 4 %, and the 45.4
GiB measured of all 24 layers with flex attention, to which they were not fitted, within 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftkit.config.checks import expert_parameters
from ftkit.config.schema import Architecture, Config

GIB = 2**30
BYTES = {"bfloat16": 2, "float32": 4}
ADAPTER_BYTES = 4 + 4 + 8
"""float32 weight, gradient and Adam's two moments, for each trained parameter."""
EXPERT_ROW_COPIES = 2.7
"""What a layer's backward pass holds for each token, as multiples of what its experts' forward pass leaves."""
ADAPTED_WEIGHT_COPIES = 1.35
"""What PEFT holds while it builds a layer's adapted experts whole, and their gradient, as multiples of their size."""
EAGER_SCORE_COPIES = 7
"""Copies of the attention scores alive at once in the backward pass of eager attention."""
LOSS_CHUNK_ROWS = 256
"""Rows of logits that exist at a time in TRL's chunked loss."""


@dataclass(frozen=True)
class Footprint:
    """Memory of one GPU in bytes, by what holds it."""

    weights: float
    adapter: float
    activations: float
    working_set: float

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.working_set


@dataclass(frozen=True)
class Adapter:
    """Parameters that LoRA trains.

    Attributes:
        attention: in q, k, v and o.
        experts: in expert tensors.
        attention_modules: adapted linear modules.
        expert_tensors: adapted expert tensors.
    """

    attention: int
    experts: int
    attention_modules: int
    expert_tensors: int

    @property
    def total(self) -> int:
        return self.attention + self.experts


def model_parameters(a: Architecture) -> int:
    """Parameters of a gpt-oss of this shape, biases, norms and sinks included."""
    q, kv = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    attention = a.hidden_size * (q + 2 * kv) + q + 2 * kv + q * a.hidden_size + a.hidden_size + a.num_attention_heads
    router = a.num_local_experts * (a.hidden_size + 1)
    biases = a.num_local_experts * (2 * a.intermediate_size + a.hidden_size)
    layer = attention + router + _expert_weights(a) + biases + 2 * a.hidden_size
    return a.num_hidden_layers * layer + 2 * a.vocab_size * a.hidden_size + a.hidden_size


def adapter_parameters(config: Config) -> Adapter:
    """What LoRA trains: r × (inputs + outputs) for a linear module, as much for each expert of an expert tensor."""
    a, lora = config.model.architecture, config.lora
    q, kv = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    widths = {
        "q_proj": a.hidden_size + q,
        "k_proj": a.hidden_size + kv,
        "v_proj": a.hidden_size + kv,
        "o_proj": q + a.hidden_size,
    }
    targets = list(widths) if lora.target_modules == "all-linear" else list(lora.target_modules)
    modules = [widths[name] for name in targets if name in widths]
    tensors = adapted_expert_tensors(config)
    expert_widths = {
        "gate_up_proj": a.hidden_size + 2 * a.intermediate_size,
        "down_proj": a.intermediate_size + a.hidden_size,
    }
    experts = sum(expert_widths[name.rpartition(".")[2]] for name in tensors)
    return Adapter(
        attention=lora.r * a.num_hidden_layers * sum(modules),
        experts=lora.r * a.num_local_experts * experts,
        attention_modules=len(modules) * a.num_hidden_layers,
        expert_tensors=len(tensors),
    )


def adapted_expert_tensors(config: Config) -> list[str]:
    """Full names of the expert tensors that ``lora.target_parameters`` matches."""
    targets = config.lora.target_parameters or []
    return [n for n in expert_parameters(config) if any(n == t or n.endswith("." + t) for t in targets)]


def footprint(config: Config) -> Footprint:
    """Predicted peak of one GPU in a training step."""
    a, sft = config.model.architecture, config.sft
    width = BYTES[config.model.dtype]
    tokens = sft.per_device_train_batch_size * sft.max_length
    replicated = 4 if config.processes > 1 else 0  # DDP's buckets hold the gradients once more
    saved = a.num_hidden_layers * tokens * a.hidden_size * width
    if not sft.gradient_checkpointing:
        saved = a.num_hidden_layers * tokens * (_expert_row(a) + 8 * a.hidden_size) * width
        saved += len(adapted_expert_tensors(config)) / 2 * _expert_weights(a) * width
    return Footprint(
        weights=model_parameters(a) * width,
        adapter=adapter_parameters(config).total * (ADAPTER_BYTES + replicated),
        activations=saved,
        working_set=_working_set(config, tokens, width),
    )


def _working_set(config: Config, tokens: int, width: int) -> float:
    """What one layer's recomputation and backward pass hold at their peak, or the loss where that is more."""
    a = config.model.architecture
    layer = EXPERT_ROW_COPIES * tokens * _expert_row(a) * width
    if adapted_expert_tensors(config):
        layer += ADAPTED_WEIGHT_COPIES * _expert_weights(a) * width
    if config.model.attn_implementation == "eager":
        scores = config.sft.per_device_train_batch_size * a.num_attention_heads * config.sft.max_length**2
        layer += EAGER_SCORE_COPIES * scores * width
    return max(layer, 3 * 4 * LOSS_CHUNK_ROWS * a.vocab_size)


def _expert_weights(a: Architecture) -> int:
    return a.num_local_experts * 3 * a.hidden_size * a.intermediate_size


def _expert_row(a: Architecture) -> int:
    """Values that one token leaves in a layer's experts: input, gate and up, product, output, in each it visits."""
    return a.num_experts_per_tok * (2 * a.hidden_size + 3 * a.intermediate_size)
