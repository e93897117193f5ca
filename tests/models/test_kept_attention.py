"""Layers that recompute their activations and keep attention's output: computed once, the gradients the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import MistralConfig, MistralForCausalLM

from ftkit.models import varlen
from ftkit.models.flash import FlashCall
from ftkit.models.kept_attention import kept
from ftkit.training.recompute import RecomputeSome

SHAPE = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip


def attended(call: FlashCall, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(tokens, heads, head_dim) in plain torch, as flash attention gives it."""
    rows = (t.transpose(0, 1)[None] for t in (q, k, v))
    return varlen.plain_attention(*rows, call.scale, call.window, None, call.bounds)[0]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The window of each time that attention was computed, by a stand-in for the GPU's flash attention."""
    windows: list[int | None] = []

    def made(call: FlashCall, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        windows.append(call.window)
        return attended(call, q, k, v).contiguous(), q.new_zeros(q.shape[1], len(q)), q.new_zeros(2), q.new_zeros(1)

    def backward(call: FlashCall, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (q, k, v)]
            return torch.autograd.grad(attended(call, *leaves), leaves, gradient)

    monkeypatch.setattr(FlashCall, "_made", made)
    monkeypatch.setattr(FlashCall, "backward", backward)
    monkeypatch.setattr(varlen, "flash_is_there", lambda *_: True)
    return windows


def gradients(recomputed: int, keep: bool, window: int | None = None) -> dict[str, Tensor]:
    """Of a small Mistral, added up over two batches."""
    torch.manual_seed(0)
    config = MistralConfig(**SHAPE, vocab_size=64, sliding_window=window, attn_implementation=varlen.NAME)
    model = MistralForCausalLM(config).bfloat16().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    RecomputeSome(recomputed, keep_attention=keep).on_train_begin(None, None, None, model=model)
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    for batch in torch.randint(64, (2, 1, 12)):
        model(input_ids=batch, labels=batch, cu_seq_lens_q=bounds, max_length_q=7, use_cache=False).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("recomputed", "keep", "window", "times"),
    [(4, False, None, 8), (4, True, None, 4), (2, False, None, 6), (2, True, None, 4), (0, True, None, 4),
     (4, True, 3, 8)],
)  # fmt: skip
def test_what_is_kept_is_computed_once_and_the_gradients_are_the_same(
    computed: list[int | None], recomputed: int, keep: bool, window: int | None, times: int
) -> None:
    """To the last bit, over two batches; a window's output is cheap to compute and is not kept.

    Guards: ``kept_or_made`` in ``FlashCall.forward``, ``context_fn`` in ``RecomputeSome``.
    """
    plain = gradients(0, False, window)
    computed.clear()
    found = gradients(recomputed, keep, window)
    assert computed == [window] * 2 * times
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)


def test_two_passes_before_their_backward_passes_each_keep_their_own(computed: list[int | None]) -> None:
    def attention(q: Tensor) -> Tensor:
        return varlen.VarlenAttention.apply(q, q, q, torch.tensor([0, 3, 6]), 3, None, 0.5)

    first, second = (torch.randn(6, 2, 8, requires_grad=True) for _ in range(2))
    losses = [checkpoint(attention, q, use_reentrant=False, context_fn=kept).square().sum() for q in (first, second)]
    for loss in reversed(losses):
        loss.backward()
    assert len(computed) == 2
    for q in (first, second):
        alone = q.detach().requires_grad_()
        attention(alone).square().sum().backward()
        assert torch.equal(q.grad, alone.grad)
