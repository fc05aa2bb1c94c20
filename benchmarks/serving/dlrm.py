"""The model that every server answers with, made from a seed in whichever process.

Needs torch alone: peers import it too. A DLRM (Naumov et al., 2019): 26 tables of 16 floats, a bottom MLP over 13
numbers, the dot products of all pairs, a top MLP.
"""

import torch
from torch import Tensor, nn

TABLES = 26
FEATURES = 13
WIDTH = 16
FULL_ROWS = 172_000
"""Rows of each table: 287 MB in all."""
LARGE_ROWS, LARGE_WIDTH = 384_615, 64
"""Of each table: 10 million rows of 64 floats, 2.6 GB."""
SEED = 0


class Dlrm(nn.Module):
    """ids [B, 26] int64 and dense [B, 13] float32 -> score [B] float32."""

    def __init__(self, rows: int, width: int = WIDTH) -> None:
        super().__init__()
        vectors = TABLES + 1
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(TABLES))
        self.bottom = nn.Sequential(
            nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU()
        )
        self.top = nn.Sequential(
            nn.Linear(width + vectors * (vectors - 1) // 2, 256),
            nn.ReLU(),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 1),
        )
        pairs = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1], persistent=False)
        self.pairs: Tensor

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Probability of a click."""
        low = self.bottom(dense)
        vectors = torch.stack([low, *(table(ids[:, t]) for t, table in enumerate(self.tables))], 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        score: Tensor = torch.sigmoid(self.top(torch.cat([low, dots], 1))).squeeze(1)
        return score


def make(rows: int, width: int = WIDTH, seed: int = SEED) -> Dlrm:
    """Make the model of a seed, with one torch thread in this process, ready for inference."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return Dlrm(rows, width).eval().requires_grad_(requires_grad=False)


def draw(rows: int, batch: int, number: int) -> dict[str, Tensor]:
    """Request `number` of a batch size: ids of all tables alike, numbers from a normal distribution."""
    random = torch.Generator().manual_seed(1_000 * batch + number)
    ids = torch.randint(0, rows, (batch, TABLES), generator=random)
    return {"ids": ids, "dense": torch.randn(batch, FEATURES, generator=random)}
