"""What a model family has to say for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

Values = Mapping[str, Any]
"""Values of a checkpoint's config.json, or of ``model.architecture``."""

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
COMMON_SHAPE = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"),
    "max_position_embeddings",
)
PLAIN = "ftkit.models.plain"
EXPERTS_SHAPE = ("num_local_experts", "num_experts_per_tok")


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        model_type: as transformers names it.
        title: for the user.
        layer_class: decoder layer's class, which ``sft.fsdp`` shards by; None finds it in the model.
        attention: what ``model.attn_implementation`` can be; ``auto`` takes the first.
        experts: what ``model.experts_implementation`` can be; ``auto`` takes the first; only ``eager`` without experts.
        expert_tensors: names of a layer's expert tensors that LoRA adapts; empty for a dense model.
        router: parts of the names of weights that route tokens to experts; they stay frozen.
        linear: names of a layer's linear modules, ``self_attn.q_proj``, which ``lora.target_modules`` may name; empty
            where ftkit does not know them.
        window: tokens that every second layer looks back, for ``plan``; attention goes by the model's own.
        mxfp4: module that reads and writes its checkpoints with experts in MXFP4: ``load_packed``, ``round_experts``,
            ``save_packed`` and ``packed_bytes``; None where none can be. It needs torch.
        gguf: llama.cpp's name of its architecture, where ``merge.gguf`` can check what llama.cpp makes of it.
        vllm_arguments: of ``vllm serve``, unless ``deployment.engine_args`` says something of the same.
        chat: ``harmony`` where its tokenizer must have Harmony's tokens; None finds the format by the tokenizer.
        renamed: name of a value in ``model.architecture`` → its names in config.json, the first that is there counts.
        biases: parameters of one layer's biases, sinks and other vectors besides the two norms, from its shape.
        implementation: module with ``prepare(model, config, fused=…)``, ``why_plain(config, device)``,
            ``flash_runs(device, head_dim)`` and ``register()``, which needs torch.
        why_not: why a value of ``attn_implementation`` that transformers knows is refused.
    """

    model_type: str
    title: str
    layer_class: str | None
    attention: tuple[str, ...]
    experts: tuple[str, ...] = ("eager",)
    expert_tensors: tuple[str, ...] = ()
    router: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    window: int | None = None
    mxfp4: str | None = None
    gguf: str | None = None
    vllm_arguments: Mapping[str, str] = field(default_factory=dict)
    chat: str | None = None
    renamed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    biases: Callable[[Any], int] = lambda architecture: 0
    implementation: str = PLAIN
    why_not: str = ""

    @property
    def fused(self) -> bool:
        """Whether ftkit has fused layers for it."""
        return self.implementation != PLAIN

    @property
    def training(self) -> Any:
        """The module that ``implementation`` names; importing it needs torch."""
        return import_module(self.implementation)

    @property
    def packed(self) -> Any:
        """The module that ``mxfp4`` names."""
        assert self.mxfp4 is not None, f"no {self.title} comes in MXFP4"
        return import_module(self.mxfp4)

    def shape(self, config: Values) -> dict[str, Any]:
        """``model.architecture`` from the values of a checkpoint's config.json.

        Raises:
            KeyError: a value that every causal model has is not there.
        """
        own = (*COMMON_SHAPE, *(EXPERTS_SHAPE if self.expert_tensors else ()))
        names = {name: (name,) for name in own} | dict(self.renamed)
        shape: dict[str, Any] = {}
        for ours, theirs in names.items():
            shape[ours] = config[next((name for name in theirs if name in config), theirs[0])]
        shape["model_type"] = self.model_type
        shape["num_key_value_heads"] = config.get("num_key_value_heads") or shape["num_attention_heads"]
        shape["head_dim"] = config.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        shape["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
        return dict.fromkeys(EXPERTS_SHAPE) | shape
