"""Flash attention of documents that lie end to end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ftkit.models.kept_attention import kept_or_made


@dataclass(frozen=True)
class FlashCall:
    """torch's flash attention, causal within each document.

    Attributes:
        bounds: (documents + 1,) int32.
        longest: tokens of the longest document.
        window: keys that a token sees, itself among them; None: all before it.
        scale: of the scores.
    """

    bounds: Tensor
    longest: int
    window: int | None
    scale: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Output (tokens, heads, head_dim), lse (heads, tokens) in float32, and dropout's two for the backward.

        Without a window they may be kept from the pass before (``kept_attention``).
        """
        return self._made(q, k, v) if self.window else kept_or_made(partial(self._made, q, k, v))

    def _made(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        *made, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, self.bounds, self.bounds, self.longest, self.longest, 0.0, True, False, **self._options()
        )
        return tuple(made)

    def backward(
        self, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, *random: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v; o and lse need not be those of ``forward``."""
        return torch.ops.aten._flash_attention_backward(
            gradient, q, k, v, o, lse, self.bounds, self.bounds, self.longest, self.longest, 0.0, True, *random,
            **self._options(),
        )  # fmt: skip

    def _options(self) -> dict[str, Any]:
        left, right = (self.window - 1, 0) if self.window else (None, None)
        return {"scale": self.scale, "window_size_left": left, "window_size_right": right}
