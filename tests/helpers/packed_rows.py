"""Documents of random tokens, and the packed batch that the collator makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ftkit.training.collator import Collator

# Longer than the sliding window of 8, shorter, and of one token; the last row ends in padding.
ROWS = ((19, 5, 12), (1, 1, 9), (30,))


def documents(rows: tuple[tuple[int, ...], ...] = ROWS) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randint(8, 288, (size,), generator=generator) for size in row] for row in rows]


def packed(rows: list[list[Tensor]]) -> dict[str, Tensor]:
    """The batch that the collator makes of these documents, every token but a document's first with loss."""
    examples = []
    for row in rows:
        labels = torch.cat(row).clone()
        labels[torch.tensor([0, *[len(d) for d in row[:-1]]]).cumsum(0)] = -100
        examples.append(
            {
                "input_ids": torch.cat(row).numpy(),
                "labels": labels.numpy(),
                "seq_lengths": [len(d) for d in row],
                "rows": [0],
            }
        )
    batch = Collator(pad_token_id=0, packed=True)(examples)
    return {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
