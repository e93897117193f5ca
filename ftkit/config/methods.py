"""The group ``method``: how a model is trained, one kind of keys for each. What all of them share is in ``sft``.

Keys keep the names of TRL's DPOConfig and GRPOConfig.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ftkit.config.fields import Fraction, Group, Name, PositiveInt

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
"""TRL's losses of pairs."""
REWARDS = ("right", "language", "form", "length", "repetition")
"""Rewards that ftkit brings."""


class AnyMethod(Group):
    start: Name | None
    """Run whose merged model the training goes on from, in place of the model's own weights; null: from those."""

    @property
    def answers(self) -> int:
        """Answers to a question that a row has, each trained on with its prompt."""
        return 1

    @property
    def rollouts(self) -> int:
        """Answers of the model's own to each question, which are rows to train on."""
        return 1

    @property
    def gpu_share(self) -> float:
        """Share of a GPU's memory that is taken beside the training."""
        return 0.0


class SftMethod(AnyMethod):
    """Supervised fine-tuning: the answers as they stand in the rows."""

    name: Literal["sft"]
    """sft: supervised fine-tuning on answers."""


class DpoMethod(AnyMethod):
    """Direct preference optimisation: of each pair, the chosen answer rather than the rejected one."""

    name: Literal["dpo"]
    """dpo: preference of one answer over another, against the model that the training starts from."""
    beta: Annotated[float, Field(gt=0)]
    """How closely the model stays by the one it starts from: higher is closer. ipo's τ."""
    loss_type: DpoLoss | list[DpoLoss]
    """TRL's loss, or a list of them, which loss_weights weighs: [sigmoid, sft] keeps the chosen answers likely."""
    loss_weights: list[float] | None
    """Weights of a list of losses, as many; null weighs all by 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    """Share of pairs that may be the wrong way round, for the losses robust, exo_pair, aot and aot_unpaired."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
    """Divergence from the model that the training starts from; reverse_kl is DPO's own."""
    f_alpha_divergence_coef: float
    """α of alpha_divergence."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None
    """Weight of what the longer answer of a pair has beyond the shorter one's length; null: as the rest."""
    use_weighting: bool
    """true weighs pairs by how likely the model itself finds them (WPO)."""
    discopop_tau: Annotated[float, Field(gt=0)]
    """Temperature of the loss discopop."""

    @property
    def answers(self) -> int:
        return 2

    @property
    def losses(self) -> list[str]:
        """``loss_type`` as a list."""
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)


class GrpoMethod(AnyMethod):
    """Group relative policy optimisation: the model's own answers to a question, by what they are worth."""

    name: Literal["grpo"]
    """grpo: rewards of the model's own answers."""
    rewards: dict[str, float]
    """Weights by name: right, language, form, length, repetition, or a function of your own as module.function, which
    takes a list of answers and gives a number for each."""
    num_generations: Annotated[int, Field(ge=2)]
    """Answers to each question, compared among themselves; rows of a step are a multiple of it."""
    max_completion_length: PositiveInt
    """Longest answer in tokens; questions that leave less room within sft.max_length are left out."""
    temperature: Annotated[float, Field(gt=0)]
    """Of the answers; higher makes them differ more."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Tokens are drawn from the likeliest whose probabilities add up to this."""
    beta: Annotated[float, Field(ge=0)]
    """Weight of the divergence from the model that the training starts from; 0 needs no pass of it."""
    epsilon: Annotated[float, Field(gt=0, lt=1)]
    """How far the ratio of probabilities may leave 1 before it is clipped."""
    epsilon_high: Annotated[float, Field(gt=0)] | None
    """The same upwards; null: as epsilon."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"]
    """How tokens are averaged: over each answer, over all tokens, by the longest length, over a step's tokens."""
    scale_rewards: Literal["group", "batch", "none"]
    """What a reward's distance from its group's mean is divided by: the spread of the group, of the batch, nothing."""
    num_iterations: PositiveInt
    """Passes over the same answers."""
    mask_truncated_completions: bool
    """true leaves answers that did not end out of the loss."""
    use_vllm: bool
    """true has TRL's vLLM write the answers on the training's GPU; false transformers."""
    vllm_gpu_memory_utilization: Fraction
    """Share of the GPU's memory that vLLM takes."""
    collapse: Fraction | None
    """Stops when the share that thinks in the language, or the length, falls below this share of what it was; null
    trains on."""
    collapse_steps: PositiveInt
    """Lines of the log that this is judged by."""

    @property
    def rollouts(self) -> int:
        return self.num_generations

    @property
    def gpu_share(self) -> float:
        return self.vllm_gpu_memory_utilization if self.use_vllm else 0.0


Method = Annotated[SftMethod | DpoMethod | GrpoMethod, Field(discriminator="name")]
METHODS: dict[str, type[AnyMethod]] = {"sft": SftMethod, "dpo": DpoMethod, "grpo": GrpoMethod}
