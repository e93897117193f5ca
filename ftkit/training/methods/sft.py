"""method=sft: the cross entropy of the answers, by TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ftkit.chat.format import parser_of
from ftkit.config.schema import Config
from ftkit.models.lora import bare_model
from ftkit.models.loss_head import add_loss_head
from ftkit.training.arguments import shared_arguments, with_precision
from ftkit.training.collator import Collator, JoiningCollator
from ftkit.training.collectives import gathered
from ftkit.training.dataset import training_rows as rows
from ftkit.training.guards import DocumentsApart
from ftkit.training.heldout import HeldOut, means
from ftkit.training.methods import Say
from ftkit.training.trainer import TrustworthyTrainer

__all__ = ["SftTrainer", "arguments", "rows", "trainer"]


def arguments(config: Config, checkpoints: Path) -> SFTConfig:
    """TRL's arguments."""
    made = SFTConfig(
        **shared_arguments(config, checkpoints),
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        average_tokens_across_devices=True,
    )
    return with_precision(made, config)


def trainer(
    config: Config, args: Any, model: nn.Module, tokenizer: PreTrainedTokenizerBase, found: Dataset,
    heldout: Dataset | None, say: Say,
) -> SftTrainer:  # fmt: skip
    """A trainer of ``found``, as ``rows`` makes them, that is evaluated on ``heldout``, if there are any."""
    collate = _collator(config, cast(int, tokenizer.pad_token_id))
    size, mix = args.per_device_train_batch_size, tuple(config.dataset.mix or ())
    made = SftTrainer(
        model=model,
        args=args,
        train_dataset=found,
        eval_dataset=heldout,
        data_collator=collate,
        processing_class=tokenizer,
        heldout=None if heldout is None else HeldOut(heldout, collate, size, parser_of(tokenizer), mix),
        sft=config.sft,
    )
    if config.sft.packing and config.sft.verify_packing:
        made.add_callback(DocumentsApart(found, collate, lambda: made.accelerator.autocast(), say))
    return made


def _collator(config: Config, pad_token_id: int) -> Collator | JoiningCollator:
    model, sft = config.model, config.sft
    if model.joins_rows:
        return JoiningCollator(pad_token_id)
    # flex_attention is compiled anew for another length.
    pad_to = sft.max_length if model.attn_implementation == "flex_attention" and sft.packing else None
    return Collator(pad_token_id, sft.packing, pad_to)


class SftTrainer(TrustworthyTrainer, SFTTrainer):
    """One process of a supervised training.

    Args:
        heldout: what to evaluate on; None where ``eval_strategy`` is no.
        kwargs: SFTTrainer's own; ``data_collator`` is a ``Collator`` or ``JoiningCollator``, and the dataset
            ``training_rows``'.
    """

    def __init__(self, *, heldout: HeldOut | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self._heldout = heldout
        self._head_is_frozen = isinstance(self.model, PeftModel)
        if self._head_is_frozen:
            add_loss_head(bare_model(cast(nn.Module, self.model)))

    @property
    def lines_may_wait(self) -> bool:
        """On a GPU, where the loss is ``loss_head``'s."""
        joins = isinstance(self.data_collator, JoiningCollator)
        return joins and self._head_is_frozen and not self.aux_loss_enabled and self.args.device.type == "cuda"

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the step's loss tokens; by ``loss_head`` where the batch and the model are made for it."""
        if self.aux_loss_enabled or not self._head_is_frozen or "loss_positions" not in inputs:
            inputs = {name: value for name, value in inputs.items() if not name.startswith("loss_")}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        count = len(inputs["loss_targets"]) if num_items_in_batch is None else num_items_in_batch
        loss = model(**inputs) * (self.args.world_size / torch.as_tensor(count).clamp(min=1))
        self._note(loss)
        return loss

    def held_out_figures(self) -> dict[str, float]:
        """The mean loss on the held-out rows, on their thinking and on their answers."""
        assert self._heldout is not None
        model: Any = self.model
        with self.accelerator.autocast():
            here = self._heldout.sums(model, process=self.args.process_index, processes=self.args.world_size)
        there = gathered(here.flatten().to(self.args.device))
        return means(there.sum(0).view(-1, 2).cpu(), self._heldout.names)
