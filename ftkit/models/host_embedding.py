"""The input embedding in the host's memory, for CUDA GPUs: a step reads few of its rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftkit.models.kernels.vocabulary import gather_rows


class HostEmbedding(nn.Module):
    """A frozen embedding whose rows the GPU reads from page-locked memory.

    Args:
        weight: (vocabulary, width), on any device.

    Attributes:
        weight: the same in page-locked memory of the host; no parameter, so that ``to`` and DDP leave it there.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = torch.empty(weight.shape, dtype=weight.dtype, device="cpu", pin_memory=True)
        self.weight.copy_(weight)

    def forward(self, ids: Tensor) -> Tensor:
        """ids of any shape (…), on the GPU → (…, width) there."""
        return gather_rows(self.weight, ids)


def keep_embedding_on_host(model: PreTrainedModel) -> None:
    """Move the input embedding of a model that is not wrapped by PEFT out of the GPU's memory."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    model.set_input_embeddings(HostEmbedding(embedding.weight.detach()))
