"""Publish from training code: one export of the whole model; the manifest says how it is cut.

python examples/split-ranker/publish.py [SEED]
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ipnext.client import Client
from serving.export import export_model

ROWS = {"user": 5_000, "item": 8_000, "brand": 400}
FEATURES, WIDTH = 13, 16


class Cross(nn.Module):
    """vectors [B, N, WIDTH] -> products of each pair [B, N * N]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(count, count))

    def forward(self, vectors: Tensor) -> Tensor:
        """All pairs, each with a weight of its own."""
        return ((vectors @ vectors.transpose(1, 2)) * self.scale).flatten(1)


class Ranker(nn.Module):
    """user, item, brand [B] of ids and features [B, FEATURES] -> score [B] between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(rows, WIDTH) for name, rows in ROWS.items()})
        self.bottom = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU())
        self.cross = Cross(len(ROWS) + 1)
        self.top = nn.Sequential(nn.Linear((len(ROWS) + 1) ** 2 + WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user: Tensor, item: Tensor, brand: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Cross and weigh the features and the rows of the tables."""
        dense = self.bottom(features)
        rows = [self.tables["user"](user), self.tables["item"](item), self.tables["brand"](brand)]
        crossed = self.cross(torch.stack([dense, *rows], dim=1))
        return {"score": torch.sigmoid(self.top(torch.cat([dense, crossed], dim=1))).squeeze(1)}


def inputs(batch: int) -> dict[str, Tensor]:
    """Return a request of `batch` rows."""
    ids = {name: torch.randint(0, rows, (batch,)) for name, rows in ROWS.items()}
    return {**ids, "features": torch.randn(batch, FEATURES)}


def main(seed: int) -> None:
    """Export, publish, wait."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as directory:
        whole = Path(directory) / "whole"
        export_model(Ranker(), inputs(4), whole)
        client = Client()
        change = client.publish("split-ranker", {"whole": whole})
        done = client.wait_change(change.id, timeout_seconds=300)
        print(f"generation {done.generation}: {done.state} {done.message}".rstrip())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
