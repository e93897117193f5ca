"""Documents of a packed row must not see each other. The guard is ``isolate_documents``."""

from __future__ import annotations

import pytest
import torch
from helpers.packed_rows import ROWS, documents, packed
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GptOssForCausalLM

from ftkit.config.groups import Lora
from ftkit.models.gpt_oss.document_masks import isolate_documents
from ftkit.models.lora import add_lora


def summed_loss(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    labels = batch["labels"]
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


def largest_difference(model: torch.nn.Module, rows: list[list[Tensor]]) -> float:
    """Between the logits of each document in its packed row and alone."""
    with torch.no_grad():
        batch = packed(rows)
        together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        found = 0.0
        for row, logits in zip(rows, together, strict=True):
            start = 0
            for document in row:
                alone = model(input_ids=document[None], use_cache=False).logits[0]
                found = max(found, (logits[start : start + len(document)] - alone).abs().max().item())
                start += len(document)
        return found


def test_upstream_still_lets_documents_see_each_other(model: GptOssForCausalLM) -> None:
    """Canary: when this fails, transformers has cured it, and document_masks.py and its hook can go."""
    assert largest_difference(model, documents()) > 0.1


@pytest.mark.parametrize("rows", [ROWS, ((19, 5, 12),), ((4, 4), (8,))], ids=["padded", "one-row", "unpadded"])
def test_packed_logits_are_those_of_each_document_alone(
    model: GptOssForCausalLM, rows: tuple[tuple[int, ...], ...]
) -> None:
    isolate_documents(model)
    assert largest_difference(model, documents(rows)) < 1e-5


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_packed_gradients_are_those_of_each_document_alone(
    model: GptOssForCausalLM, experts: str, checkpointing: bool
) -> None:
    """Also wrapped by PEFT, in training mode."""
    model.set_experts_implementation(experts)
    lora = Lora(
        r=2,
        lora_alpha=4,
        lora_dropout=0.0,
        target_modules="all-linear",
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        use_rslora=False,
        init_lora_weights=False,
    )
    wrapped, _ = add_lora(model, lora)
    isolate_documents(wrapped)
    wrapped.train()
    if checkpointing:
        wrapped.enable_input_require_grads()
        wrapped.gradient_checkpointing_enable({"use_reentrant": False})
    rows = documents()
    loss = summed_loss(wrapped, packed(rows))
    loss.backward()
    together = gradients(wrapped)
    losses = [
        summed_loss(wrapped, {"input_ids": d[None], "labels": d[None]}) for row in rows for d in row if len(d) > 1
    ]
    torch.stack(losses).sum().backward()
    alone = gradients(wrapped)
    assert together.keys() == alone.keys() and len(together) == 2 * (8 + 4)
    torch.testing.assert_close(loss, torch.stack(losses).sum())
    for name in together:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-4, msg=name)


def test_padding_masks_and_generation_stay_as_they_were(model: GptOssForCausalLM) -> None:
    ids = documents(((9, 6),))[0]
    left = torch.zeros(2, 9, dtype=torch.long)
    left[0], left[1, 3:] = ids[0], ids[1]
    mask = (torch.arange(9) >= torch.tensor([[0], [3]])).long()
    before = model.generate(left, attention_mask=mask, max_new_tokens=12, do_sample=False), model(input_ids=left).logits
    hook = isolate_documents(model)
    after = model.generate(left, attention_mask=mask, max_new_tokens=12, do_sample=False), model(input_ids=left).logits
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    hook.remove()
    assert largest_difference(model, documents()) > 0.1


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no GptOssModel"):
        isolate_documents(torch.nn.Linear(2, 2))
