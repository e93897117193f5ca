"""method=grpo: the model's own answers by what they are worth, by TRL's GRPOTrainer."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ftkit.chat.format import parser_of
from ftkit.config.checks.methods import experts_in_mxfp4
from ftkit.config.methods import GrpoMethod
from ftkit.config.schema import Config
from ftkit.errors import StageError
from ftkit.models.loading import holds_mxfp4, load_tokenizer
from ftkit.training.arguments import shared_arguments, with_precision
from ftkit.training.collapse import StopsAtCollapse
from ftkit.training.collectives import gathered
from ftkit.training.dataset import DataCounts
from ftkit.training.methods import Say
from ftkit.training.methods.policy import make_policy
from ftkit.training.prompts import prompt_rows
from ftkit.training.rewards import Answers, Reward
from ftkit.training.trainer import TrustworthyTrainer

NOT_TRLS = {"name", "start", "rewards", "collapse", "collapse_steps", "use_vllm", "vllm_gpu_memory_utilization"}
"""Keys of ``method`` that ftkit acts on itself, or hands on as TRL has them elsewhere."""


def arguments(config: Config, checkpoints: Path) -> GRPOConfig:
    """TRL's arguments."""
    method = config.method
    assert isinstance(method, GrpoMethod)
    vllm: dict[str, Any] = {}
    if method.use_vllm:
        _check_that_vllm_takes_new_weights(config)
        share = method.vllm_gpu_memory_utilization
        vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": share}
    made = GRPOConfig(
        **shared_arguments(config, checkpoints),
        **method.model_dump(exclude=NOT_TRLS),
        **vllm,
        reward_weights=list(method.rewards.values()),
        per_device_eval_batch_size=method.num_generations,  # which TRL holds against each other, and ftkit needs not
    )
    return with_precision(made, config)


def _check_that_vllm_takes_new_weights(config: Config) -> None:
    """Once more, with the checkpoint at hand: where the configuration was read it may not have been.

    Raises:
        StageError: the checkpoint is in MXFP4.
    """
    if holds_mxfp4(config.model):
        found = experts_in_mxfp4(config)
        raise StageError(found.what, where=found.key, cure=found.cure)


def rows(tokens: Path, config: Config, *, vocab_size: int, split: str = "train") -> tuple[Dataset, DataCounts]:
    """Questions with the answers that are right."""
    return prompt_rows(tokens, config, vocab_size=vocab_size, tokenizer=load_tokenizer(config.model), split=split)


def trainer(
    config: Config, args: Any, model: nn.Module, tokenizer: PreTrainedTokenizerBase, found: Dataset,
    heldout: Dataset | None, say: Say,
) -> GrpoTrainer:  # fmt: skip
    """A trainer of ``found``, as ``rows`` makes them, that is evaluated on ``heldout``, if there are any."""
    method = config.method
    assert isinstance(method, GrpoMethod)
    asked = args.generation_batch_size // method.num_generations
    if len(found) < asked:
        raise StageError(
            f"{len(found)} questions, and a step asks {asked}",
            where="sft.per_device_train_batch_size",
            cure=f"sft.per_device_train_batch_size={method.num_generations} sft.gradient_accumulation_steps=1",
        )
    answers = Answers(parser_of(tokenizer), config.evaluation.match)
    made = GrpoTrainer(
        model=model,
        args=args,
        train_dataset=found,
        eval_dataset=heldout,
        processing_class=tokenizer,
        reward_funcs=[Reward(name, answers, first=i == 0) for i, name in enumerate(method.rewards)],
        joins=config.model.joins_rows,
        sft=config.sft,
    )
    if method.collapse is not None:
        made.add_callback(StopsAtCollapse(method.collapse, method.collapse_steps))
    return made


class GrpoTrainer(TrustworthyTrainer, GRPOTrainer):
    """One process of a training on the model's own answers.

    Args:
        joins: whether the model's attention takes rows end to end, without padding.
        kwargs: GRPOTrainer's own; the datasets are ``prompt_rows``', the rewards ``Reward``s.
    """

    def __init__(self, *, joins: bool, **kwargs: Any):
        super().__init__(**kwargs)
        make_policy(self.model, joins=joins)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """The prompts as they are: ``prepare`` has tokenised them."""
        return prompts, None, {}

    def _count(self, batches: list[Any], loss_tokens: Any) -> None:
        """Rows alone; tokens are known once the answers are there."""
        self._rows = [example["row"] for batch in batches for example in batch]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        answers = int(inputs["completion_mask"].sum())
        tokens = answers + int(inputs["prompt_mask"].sum())
        self._window.add(tokens, self._of_all_processes(answers))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def held_out_figures(self) -> dict[str, float]:
        """The mean reward of the likeliest answer to each held-out question, and its parts.

        ``eval_loss`` is minus the mean reward, so that lower is better as for any other method.
        """
        model: Any = self.model
        training, sampled, draws = model.training, self.generation_config, self.generation_kwargs
        model.eval()
        self.generation_config = copy(sampled)
        self.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None, min_p=None)
        self.generation_kwargs = draws | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        try:
            here = self._rewards_on(self.eval_dataset)
        finally:
            self.generation_config, self.generation_kwargs = sampled, draws
            model.train(training)
        sums = gathered(here).sum(0).tolist()
        *parts, tokens, count = (value for value in sums)
        weights = self.reward_weights.tolist()
        reward = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / count
        named = {f"eval_rewards/{name}/mean": part / count for name, part in zip(self._names, parts, strict=True)}
        return {"eval_loss": -reward, "eval_reward": reward, **named, "eval_completions/mean_length": tokens / count}

    @property
    def _names(self) -> list[str]:
        return list(self.reward_func_names)

    def _rewards_on(self, asked: Any) -> torch.Tensor:
        """float64 (rewards + 2,): sums of each reward and of tokens over this process's questions, and their number."""
        size, first = self.args.per_device_train_batch_size, self.args.process_index
        total = torch.zeros(len(self._names) + 2, dtype=torch.float64)
        for start in range(first * size, len(asked), size * self.args.world_size):
            some = [asked[i] for i in range(start, min(start + size, len(asked)))]
            ids, _ = self._generate_single_turn([one["prompt"] for one in some], None, {}, 1)
            columns = {name: [one[name] for one in some] for name in ("row", "question", "expected")}
            prompts = [one["prompt"] for one in some]
            parts = [sum(cast(Any, reward)(prompts, None, ids, **columns)) for reward in self.reward_funcs]
            total += torch.tensor([*parts, sum(map(len, ids)), len(some)], dtype=torch.float64)
        return total.to(self.args.device)
