"""How many parameters are trained and how much GPU memory a step needs, from the configuration; imports no torch.

For ``ftkit_lora`` experts on a GPU the tensors that are alive at a step's peak are added up. For the others, constants
were fitted to peaks measured on H100s of 80 GB (PEFT 0.21, transformers 5.17, torch 2.11). ``tests/training`` holds
what was measured; of full fine-tuning that is one setting, on two GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftkit.config.checks.training import expert_parameters
from ftkit.config.groups import Architecture
from ftkit.config.schema import Config
from ftkit.families import family_of

GIB = 2**30
BYTES = {"bfloat16": 2, "float32": 4}
ADAPTER_BYTES = 4 + 4 + 8
"""float32 weight, gradient and Adam's two moments, for each trained parameter."""
CHECKPOINT_BYTES = 4 + 8
"""float32 weight and Adam's two moments."""
EXPERT_ROW_COPIES = 2.7
"""What a layer's backward pass holds for each token, as multiples of what its experts' forward pass leaves."""
ADAPTED_WEIGHT_COPIES = 1.35
"""What PEFT holds while it builds a layer's adapted experts whole, and their gradient, as multiples of their size."""
EAGER_SCORE_COPIES = 7
"""Copies of the attention scores alive at once in the backward pass of eager attention."""
LOSS_CHUNK_ROWS = 256
"""Rows of logits that exist at a time in TRL's chunked loss."""
FUSED_LOSS_CHUNK_ROWS = 1024
"""The same in ``loss_head``."""
MXFP4_BYTES = 17 / 32
"""A byte for two numbers, and one for the scale of 32."""
MXFP4_PARTS = 2
"""Parts in which an expert tensor in MXFP4 is unpacked."""
LSE_BYTES = 4
"""A float32 for each token and head beside attention's output."""
LIBRARIES = 2**26
"""What matrix libraries keep as their workspace."""
UNPACKING_COPIES = 3.8
"""What transformers holds while it unpacks an expert tensor of a checkpoint, as multiples of its size."""


@dataclass(frozen=True)
class Footprint:
    """Memory of one GPU in bytes, by what holds it; ``optimiser`` with gradients and adapter, ``vllm`` beside it."""

    weights: float
    optimiser: float
    activations: float
    working_set: float
    vllm: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.optimiser + self.activations + self.working_set + self.vllm


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
    """Parameters of a model of this shape, its family's biases included."""
    q, kv = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    attention = 2 * a.hidden_size * (q + kv)
    router = (a.num_local_experts or 0) * a.hidden_size
    layer = attention + router + _expert_weights(a) + family_of(a.model_type).biases(a) + 2 * a.hidden_size
    vocabularies = 1 if a.tie_word_embeddings else 2
    return a.num_hidden_layers * layer + vocabularies * a.vocab_size * a.hidden_size + a.hidden_size


def adapter_parameters(config: Config) -> Adapter:
    """What LoRA trains: r × (inputs + outputs) for a linear module, as much for each expert of an expert tensor."""
    a, lora = config.model.architecture, config.lora
    if lora is None:
        return Adapter(0, 0, 0, 0)
    q, kv = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    widths = {
        "q_proj": a.hidden_size + q,
        "k_proj": a.hidden_size + kv,
        "v_proj": a.hidden_size + kv,
        "o_proj": q + a.hidden_size,
    }
    if a.num_local_experts is None:
        mlp = a.hidden_size + a.intermediate_size
        widths |= {"gate_proj": mlp, "up_proj": mlp, "down_proj": mlp}
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
        experts=lora.r * (a.num_local_experts or 0) * experts,
        attention_modules=len(modules) * a.num_hidden_layers,
        expert_tensors=len(tensors),
    )


def adapted_expert_tensors(config: Config) -> list[str]:
    """Full names of the expert tensors that ``lora.target_parameters`` matches."""
    targets = (config.lora and config.lora.target_parameters) or []
    return [n for n in expert_parameters(config) if any(n == t or n.endswith("." + t) for t in targets)]


def fused(config: Config) -> bool:
    """Whether ftkit's fused layers will compute it, as far as the configuration says."""
    model, sft = config.model, config.sft
    family = family_of(model.architecture.model_type)
    ours = (model.attn_implementation, model.experts_implementation) == (family.attention[0], family.experts[0])
    on_gpu = config.compute.gib_per_gpu is not None and model.dtype == "bfloat16" and sft.bf16
    adapters = config.lora is not None and not config.lora.lora_dropout
    return family.fused and ours and on_gpu and adapters and not sft.fsdp


def footprint(config: Config) -> Footprint:
    """Predicted peak of one GPU, in a training step or while the model is loaded."""
    sft = config.sft
    tokens = config.method.answers * sft.rows_at_a_time * sft.max_length
    shards = config.processes if sft.fsdp else 1
    replicated = 4 if config.processes > shards else 0  # DDP's buckets hold the gradients once more
    if config.lora is None:
        parameters = model_parameters(config.model.architecture)
        weights, optimiser = 4 * parameters, parameters * (ADAPTER_BYTES - 4 + replicated)
    else:
        weights, optimiser = _weights(config), adapter_parameters(config).total * (ADAPTER_BYTES + replicated)
    weights, optimiser = weights / shards, optimiser / shards
    saved = (_fused_saved if fused(config) else _saved)(config, tokens) + _kept_attention(config, tokens)
    working_set = (_fused_working_set if fused(config) else _working_set)(config, tokens)
    working_set += _for_computing(config)
    if config.model.weights != "mxfp4" and not sft.fsdp:
        a, width = config.model.architecture, BYTES[config.model.dtype]
        loading = UNPACKING_COPIES * 2 / 3 * _expert_weights(a) * width
        working_set = max(working_set, loading - optimiser - saved)
    vllm = config.method.gpu_share * (config.compute.gib_per_gpu or 0) * GIB
    return Footprint(weights=weights, optimiser=optimiser, activations=saved, working_set=working_set, vllm=vllm)


def _for_computing(config: Config) -> float:
    """Weights in bfloat16 beside those in float32, where all are trained and none is sharded."""
    whole = config.lora is None and not config.sft.fsdp
    return model_parameters(config.model.architecture) * 2 if whole and config.sft.bf16 else 0.0


def _gathered(config: Config) -> tuple[float, float]:
    """Sharded weights that a GPU holds whole: two layers and, where trained, one's gradient; or the vocabulary."""
    a, sft = config.model.architecture, config.sft
    if not sft.fsdp:
        return 0.0, 0.0
    vocabulary = (1 if a.tie_word_embeddings else 2) * a.vocab_size * a.hidden_size
    layer = (model_parameters(a) - vocabulary) / a.num_hidden_layers
    width = (2 if sft.bf16 else 4) if config.lora is None else BYTES[config.model.dtype]
    return (3 if config.lora is None else 2) * layer * width, vocabulary * width


def _weights(config: Config) -> float:
    a, width = config.model.architecture, BYTES[config.model.dtype]
    experts = a.num_hidden_layers * _expert_weights(a)
    if config.model.weights == "mxfp4":
        on_host = a.vocab_size * a.hidden_size if fused(config) else 0
        return (model_parameters(a) - experts - on_host) * width + experts * MXFP4_BYTES
    extra = _extra_columns(config)
    up = (a.hidden_size + extra) * (2 * a.intermediate_size + extra)
    down = (a.intermediate_size + extra) * (a.hidden_size + extra)
    wider = a.num_hidden_layers * (a.num_local_experts or 0) * (up + down) - experts
    if not fused(config) or not a.num_local_experts or config.model.products != "dtype":  # in FP8 twice one byte
        wider = 0
    return (model_parameters(a) + wider) * width


def _saved(config: Config, tokens: int) -> float:
    """What the forward pass leaves for the backward pass."""
    a, width = config.model.architecture, BYTES[config.model.dtype]
    recomputed = config.sft.recomputed_layers(a.num_hidden_layers)
    kept = a.num_hidden_layers - recomputed
    adapted = len(adapted_expert_tensors(config)) / 2 * _expert_weights(a) * kept / a.num_hidden_layers
    values = recomputed * tokens * a.hidden_size + kept * tokens * (_expert_row(a) + 8 * a.hidden_size)
    return (values + adapted) * width


def _fused_saved(config: Config, tokens: int) -> float:
    a, width = config.model.architecture, BYTES[config.model.dtype]
    kept = a.num_hidden_layers - config.sft.recomputed_layers(a.num_hidden_layers)
    inside = _attention_row(a) + (a.num_experts_per_tok or 1) * (2 * a.intermediate_size + 2 * _extra_columns(config))
    return tokens * (a.num_hidden_layers * a.hidden_size + kept * inside) * width


def _kept_attention(config: Config, tokens: int) -> float:
    """That of the layer whose turn it is counts in the working set."""
    a, width = config.model.architecture, BYTES[config.model.dtype]
    waiting = max(0, kept_attention_layers(config) - 1)
    return waiting * tokens * a.num_attention_heads * (a.head_dim * width + LSE_BYTES)


def kept_attention_layers(config: Config) -> int:
    """Layers that recompute all but attention, at most: where every second has a window, one of those without."""
    a = config.model.architecture
    without_window = a.num_hidden_layers // (2 if family_of(a.model_type).window else 1)
    return min(config.sft.recomputed_layers(a.num_hidden_layers), without_window) if config.sft.keeps_attention else 0


def _working_set(config: Config, tokens: int) -> float:
    """What one layer's recomputation and backward pass hold at their peak, or the loss where that is more."""
    a, width = config.model.architecture, BYTES[config.model.dtype]
    layers, vocabulary = _gathered(config)
    layer = EXPERT_ROW_COPIES * tokens * _expert_row(a) * width
    if adapted_expert_tensors(config) and config.model.experts_implementation != "ftkit_lora":
        layer += ADAPTED_WEIGHT_COPIES * _expert_weights(a) * width
    return max(layer + layers + _scores(config), 3 * 4 * LOSS_CHUNK_ROWS * a.vocab_size + vocabulary)


def _fused_working_set(config: Config, tokens: int) -> float:
    """The same: gate and up, the gradient of the output and that of the activation; unpacked weights beside them."""
    a, width, extra = config.model.architecture, BYTES[config.model.dtype], _extra_columns(config)
    rows, both = tokens * (a.num_experts_per_tok or 1), 2 * a.intermediate_size + extra
    layer = rows * (both + a.hidden_size + extra + a.intermediate_size)
    if config.model.products != "dtype" and not a.num_local_experts:
        layer += rows * a.hidden_size  # the MLP's gradient in one byte comes after the activation, beside the input's
    elif config.model.products != "dtype":  # gate and up, their gradient in one byte, that of the input or activation
        unpacked = _expert_weights(a) / 3 if config.model.weights == "mxfp4" else 0
        layer = rows * (3 * a.intermediate_size + max(a.hidden_size, a.intermediate_size)) + unpacked
    elif config.model.weights == "mxfp4":
        up, down = (n / 3 * _expert_weights(a) / MXFP4_PARTS for n in (2, 1))
        through_down = rows * (both + a.hidden_size + extra + a.intermediate_size / MXFP4_PARTS) + down
        layer = max(through_down, rows * (both + a.hidden_size) + up)
    layer += tokens * (_attention_row(a) + 2 * a.hidden_size)
    loss = FUSED_LOSS_CHUNK_ROWS * a.vocab_size + 3 * tokens * a.hidden_size
    return max(layer * width + _scores(config), loss * width) + LIBRARIES


def _scores(config: Config) -> float:
    """Eager attention's scores."""
    if config.model.attn_implementation != "eager":
        return 0.0
    rows = config.sft.rows_at_a_time * config.model.architecture.num_attention_heads
    return EAGER_SCORE_COPIES * rows * config.sft.max_length**2 * BYTES[config.model.dtype]


def _attention_row(a: Architecture) -> int:
    """Values that one token leaves in the fused attention: norms and sum, queries, keys and values, output."""
    return 3 * a.hidden_size + a.head_dim * (2 * a.num_attention_heads + 2 * a.num_key_value_heads)


def _extra_columns(config: Config) -> int:
    """As in ``fused.experts.extra_columns``."""
    rank = config.lora.r if config.lora and adapted_expert_tensors(config) else 0
    return -(-(rank + 1) // 16) * 16


def _expert_weights(a: Architecture) -> int:
    """Weights of a layer's experts, or of its one MLP."""
    return (a.num_local_experts or 1) * 3 * a.hidden_size * a.intermediate_size


def _expert_row(a: Architecture) -> int:
    """Values that one token leaves in a layer's experts: input, gate and up, product, output, in each it visits."""
    return (a.num_experts_per_tok or 1) * (2 * a.hidden_size + 3 * a.intermediate_size)
