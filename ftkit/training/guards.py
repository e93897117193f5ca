"""Checks of a run at its beginning: that documents are apart, and that every adapter is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftkit.errors import StageError
from ftkit.models.lora import bare_name
from ftkit.training.heldout import Collate, gathering, hidden_states, project

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.01}
"""Mean difference of the hidden states, as a share of their standard deviation, that rounding explains. Most ways to
compute show none at all; experts with float32 weights under autocast showed 0.003 on a GPU, with random weights."""


@torch.no_grad()
def check_packing(model: nn.Module, rows: Iterable[Any], collate: Collate) -> tuple[int, float] | None:
    """See that in the first packed row with several documents none changes when its neighbours do.

    Every other document is read backwards, and the rest must stay as they were; then the other way about. All passes
    have the same shapes, so that little or nothing is rounded otherwise: held against a document alone, a model that
    routes indecisively would differ from itself.

    Args:
        rows: as ``training_rows`` makes them.
        collate: rows to a batch.

    Returns:
        Documents in the row, and the mean difference as a share of the hidden states' standard deviation; None if no
        row holds several.

    Raises:
        StageError: they differ by more than ``TOLERANCE``.
    """
    row: dict[str, Any] | None = next((row for row in rows if len(row["seq_lengths"]) > 1), None)
    if row is None:
        return None
    training = model.training
    model.eval()
    document = np.repeat(np.arange(len(row["seq_lengths"])), row["seq_lengths"])
    before, *after = (
        gathering(model, _last_states)(collate([changed])).flatten(0, 1)[: len(document)].float()
        for changed in (row, _turned(row, 0), _turned(row, 1))
    )
    model.train(training)
    kept = [torch.from_numpy(document % 2 != parity).to(before.device) for parity in (0, 1)]
    difference = sum((one - before)[tokens].abs().sum().item() for one, tokens in zip(after, kept, strict=True))
    share = difference / before.numel() / before.std().item()
    explained = TOLERANCE["bfloat16" if _in_bfloat16(model) else "float32"]
    if not share <= explained:  # a difference that is no number is refused as well
        raise StageError(
            f"packed documents see each other: when others in their row change, what the last layer gives them changes "
            f"by {share:.1%} of its spread, and rounding explains {explained:.2%}; row {row['rows'][0]} and those "
            "packed with it",
            cure="sft.packing=false, or another model.attn_implementation",
        )
    return len(row["seq_lengths"]), share


def _last_states(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    hidden = hidden_states(model, batch)
    project(model, hidden[0, :1])  # sharded weights of the last norm and the head are let go together
    return hidden


def _turned(row: dict[str, Any], parity: int) -> dict[str, Any]:
    """A packed row with every other document's tokens in the opposite order."""
    ends = np.cumsum(row["seq_lengths"])
    documents = np.split(np.asarray(row["input_ids"]), ends[:-1])
    turned = [ids[::-1] if number % 2 == parity else ids for number, ids in enumerate(documents)]
    return row | {"input_ids": np.concatenate(turned)}


def _in_bfloat16(model: nn.Module) -> bool:
    parameter = next(model.parameters())
    return parameter.dtype != torch.float32 or torch.is_autocast_enabled(parameter.device.type)


class DocumentsApart(TrainerCallback):
    """Before the first step, ``check_packing`` on the model as it trains, sharded or not.

    Args:
        rows: as ``training_rows`` makes them.
        collate: rows to a batch.
        autocast: makes the context that a training step computes in.
        say: prints one line.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        collate: Collate,
        autocast: Callable[[], AbstractContextManager[Any]],
        say: Callable[[str], None],
    ):
        self._rows, self._collate, self._autocast, self._say = rows, collate, autocast, say

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with self._autocast():
            compared = check_packing(kwargs["model"], self._rows, self._collate)
        if compared:
            documents, share = compared
            self._say(
                f"{documents} packed documents do not notice when others beside them change, "
                f"to {share:.1e} of the spread"
            )


class WeightsMove(TrainerCallback):
    """After the second step every adapter's B has moved, and without adapters every weight that is trained.

    Args:
        patient: waits for the first step that moves any.

    Raises:
        StageError: some have not; names them.
    """

    def __init__(self, *, patient: bool = False):
        self._patient, self._seen = patient, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._seen = state.global_step >= 2  # of a run that goes on
        self._start = _norms(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < 2 or self._seen:
            return
        model: nn.Module = kwargs["model"]
        now = _norms(model)
        still = [name for name, norm in now.items() if norm == self._start[name]]
        if len(still) == len(now) and self._patient:  # no gradient yet: all answers were worth the same
            return
        self._seen = True
        if still:
            adapters = isinstance(model, PeftModel)
            raise StageError(
                f"{len(still)} of {len(now)} {'adapters' if adapters else 'weights'} have not moved in two steps: "
                + ", ".join(still[:4])
                + (" …" if len(still) > 4 else ""),
                cure="another model.experts_implementation or model.attn_implementation"
                + (", or leave them out of lora.target_modules and lora.target_parameters" if adapters else ""),
            )


def _norms(model: nn.Module) -> dict[str, float]:
    """The norm of each adapter's B by the name of what is adapted, or that of each trained weight."""
    if isinstance(model, PeftModel):
        trained: dict[str, Any] = {}
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                tensor = f".{module.parameter_name}" if isinstance(module, ParamWrapper) else ""
                trained[bare_name(name) + tensor] = module.lora_B["default"].weight
    else:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = [torch.linalg.vector_norm(weight.detach(), dtype=torch.float64) for weight in trained.values()]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return dict(zip(trained, torch.stack(whole).tolist(), strict=True))
