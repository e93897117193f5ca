"""Checks of a run at its beginning: that documents are apart, and that every adapter is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ftkit.errors import StageError
from ftkit.training.heldout import LOGIT_ROWS, Collate, hidden_states, project
from ftkit.training.lora import bare_name

DOCUMENTS = 4
"""Documents of the row that are compared."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Mean difference of the logits, as a share of their standard deviation, that rounding explains. In bfloat16 a token
may be sent to another expert."""


@torch.no_grad()
def check_packing(model: nn.Module, rows: Iterable[Any], collate: Collate) -> tuple[int, float] | None:
    """Compare the logits of the first packed row that holds several documents with those of each document alone.

    Args:
        rows: as ``training_rows`` makes them.
        collate: rows to a batch.

    Returns:
        Documents compared, and the mean difference as a share of the logits' standard deviation; None if no row holds
        several.

    Raises:
        StageError: they differ by more than ``TOLERANCE``.
    """
    row: dict[str, Any] | None = next((row for row in rows if len(row["seq_lengths"]) > 1), None)
    if row is None:
        return None
    training = model.training
    model.eval()
    together = hidden_states(model, collate([row])).flatten(0, 1)
    difference = spread = 0.0
    tokens = 0
    documents = list(_documents(row))
    for start, document in documents:
        alone = hidden_states(model, collate([document])).flatten(0, 1)
        length = len(document["input_ids"])
        pairs = zip(
            together[start : start + length].split(LOGIT_ROWS), alone[:length].split(LOGIT_ROWS), strict=True
        )  # fmt: skip
        for packed_rows, alone_rows in pairs:
            packed_logits, alone_logits = project(model, packed_rows), project(model, alone_rows)
            difference += (packed_logits - alone_logits).abs().mean(-1).sum().item()
            spread += alone_logits.std(-1).sum().item()
        tokens += length
    model.train(training)
    share = difference / spread
    mixed = torch.is_autocast_enabled(together.device.type)
    explained = TOLERANCE["float32" if together.dtype == torch.float32 and not mixed else "bfloat16"]
    if not share <= explained:  # a difference that is no number is refused as well
        raise StageError(
            f"packed documents see each other: their logits differ from those of each document alone by {share:.1%} "
            f"of their spread, and rounding explains {explained:.2%}; row {row['rows'][0]} and those packed with it",
            cure="sft.packing=false, or another model.attn_implementation",
        )
    return len(documents), share


def _documents(row: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Documents of a packed row, those after the first one first: where each begins, and itself as a row."""
    start, found = 0, []
    for length, number in zip(row["seq_lengths"], row["rows"], strict=True):
        part = slice(start, start + length)
        parts = {name: row[name][part] for name in ("input_ids", "labels")}
        found.append((int(start), parts | {"seq_lengths": [length], "rows": [number]}))
        start += length
    yield from [*found[1:DOCUMENTS], found[0]]


class WeightsMove(TrainerCallback):
    """After the second step every adapter's B has moved, and without adapters every weight that is trained.

    The first step's rate is 0 where there is a warm-up.

    Raises:
        StageError: some have not; names them.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start = _norms(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step != 2:
            return
        model: nn.Module = kwargs["model"]
        now = _norms(model)
        still = [name for name, norm in now.items() if norm == self._start[name]]
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
