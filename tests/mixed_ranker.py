"""The ranker of tests.mixed in torch.

The longest document first, and in its answer the numbers of all snapshots so far.
"""

import torch
from torch import Tensor, nn

from serving.export import export_model
from tests.mixed import EMBED_SIZE


class Ranker(nn.Module):
    """query [1, 4], documents [N, 4], as the mock engine embeds -> score and snapshots' numbers for each document."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("number", torch.tensor(number))

    def forward(self, query: Tensor, documents: Tensor) -> dict[str, Tensor]:
        nothing = documents[:, 0] * 0
        return {
            "score": documents[:, 0] * self.scale,
            "embedder": documents[:, 3] + nothing,
            "question": query[:, 3] + nothing,
            "ranker": self.number.expand(documents.shape[0]),
        }


class DotRanker(nn.Module):
    """query [1, size], documents [N, size] -> their products."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, query: Tensor, documents: Tensor) -> dict[str, Tensor]:
        return {"score": (query * documents).sum(1) * self.scale}


def export_ranker(module, directory, *, size=EMBED_SIZE):
    """Its snapshot; the query may come once for all documents."""
    example = {"query": torch.zeros(2, size), "documents": torch.zeros(2, size)}
    export_model(module.eval(), example, directory, request_inputs=["query"])
    return directory
