"""method=dpo: of two answers the better one, by TRL's DPOTrainer; the reference is the model without its adapter."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from ftkit.config.methods import DpoMethod
from ftkit.config.schema import Config
from ftkit.data.parts import SOURCE
from ftkit.training.arguments import shared_arguments, with_precision
from ftkit.training.collectives import gathered
from ftkit.training.methods import Say
from ftkit.training.methods.policy import make_policy
from ftkit.training.pairs import PairCollator
from ftkit.training.pairs import pair_rows as rows
from ftkit.training.trainer import TrustworthyTrainer

__all__ = ["DpoTrainer", "arguments", "rows", "trainer"]

NOT_TRLS = ("name", "start")
"""Keys of ``method`` that ftkit acts on itself."""
WATCHED = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
           "logps/rejected")  # fmt: skip
"""TRL's figures of held-out pairs."""


def arguments(config: Config, checkpoints: Path) -> DPOConfig:
    """TRL's arguments."""
    assert isinstance(config.method, DpoMethod)
    made = DPOConfig(
        **shared_arguments(config, checkpoints),
        **config.method.model_dump(exclude=set(NOT_TRLS)),
        max_length=None,
    )
    return with_precision(made, config)


def trainer(
    config: Config, args: Any, model: nn.Module, tokenizer: PreTrainedTokenizerBase, found: Dataset,
    heldout: Dataset | None, say: Say,
) -> DpoTrainer:  # fmt: skip
    """A trainer of ``found``, as ``rows`` makes them, that is evaluated on ``heldout``, if there are any."""
    return DpoTrainer(
        model=model,
        args=args,
        train_dataset=found,
        eval_dataset=heldout,
        data_collator=PairCollator(cast(int, tokenizer.pad_token_id)),
        processing_class=tokenizer,
        joins=config.model.joins_rows,
        sft=config.sft,
    )


class DpoTrainer(TrustworthyTrainer, DPOTrainer):
    """One process of a training on pairs.

    Args:
        joins: whether the model's attention takes rows end to end, without padding.
        kwargs: DPOTrainer's own; ``data_collator`` is a ``PairCollator``, and the datasets ``pair_rows``'.
    """

    def __init__(self, *, joins: bool, **kwargs: Any):
        super().__init__(**kwargs)
        make_policy(self.model, joins=joins)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are: ``prepare`` has tokenised them."""
        return dataset

    def held_out_figures(self) -> dict[str, float]:
        """The mean loss on the held-out pairs, and ``WATCHED``; the loss on the pairs of each source as well."""
        model, rows = cast(Any, self.model), cast(Any, self.eval_dataset)
        training, total, count = model.training, defaultdict[str, float](float), Counter[str]()
        model.eval()
        for source, own, weight in self._batches():
            inputs = self._prepare_inputs(self.data_collator([rows[i] for i in own]))
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self._compute_loss(model, _for_the_model(inputs), False)
            found = {name: values[-1] for name, values in self._metrics["eval"].items() if name in WATCHED}
            found["loss"] = float(gathered(loss.detach().view(1).double()).mean())
            for name, value in (found | ({f"{source}_loss": found["loss"]} if source else {})).items():
                total[name] += weight * value
                count[name] += weight
        self._metrics["eval"].clear()
        model.train(training)
        return {f"eval_{name}": value / count[name] for name, value in total.items()}

    def _batches(self) -> Iterator[tuple[str, Sequence[int], int]]:
        """A source, indices of this process's pairs of it, and how many of them all processes have together.

        Each has as many at a time; those at the end, which are too few for that, are every process's.
        """
        rows = cast(Any, self.eval_dataset)
        sources = list(rows[SOURCE]) if SOURCE in rows.column_names else [""] * len(rows)
        size, processes = self.args.per_device_train_batch_size, self.args.world_size
        for source in dict.fromkeys(sources):
            pairs = [i for i, of in enumerate(sources) if of == source]
            whole = len(pairs) - len(pairs) % (size * processes)
            for first in range(self.args.process_index * size, whole, size * processes):
                yield source, pairs[first : first + size], size * processes
            for first in range(whole, len(pairs), size):
                own = pairs[first : first + size]
                yield source, own, len(own)


def _for_the_model(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in ("rows", "tokens", "loss_tokens")}
