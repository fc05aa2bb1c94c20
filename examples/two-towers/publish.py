"""Publish from training code: export each part, then publish both as one generation; for each seed a further one.

python examples/two-towers/publish.py [SEED...]
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ipnext.client import Client
from serving.export import export_model

ITEMS, WIDTH = 1_000, 16


class User(nn.Module):
    """history [B, 8] of item ids -> vector [B, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, WIDTH)
        self.tower = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, history: Tensor) -> dict[str, Tensor]:
        """Return the mean of the history, through the tower."""
        return {"vector": self.tower(self.items(history).mean(dim=1))}


class Match(nn.Module):
    """items [B] of item ids and user [B, WIDTH] -> score [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, WIDTH)

    def forward(self, items: Tensor, user: Tensor) -> dict[str, Tensor]:
        """Cosine of item and user."""
        return {"score": nn.functional.cosine_similarity(self.items(items), user, dim=1)}


def publish(client: Client, seed: int) -> None:
    """Export, publish, wait."""
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as directory:
        user, match = Path(directory) / "user", Path(directory) / "match"
        export_model(User(), {"history": torch.zeros(4, 8, dtype=torch.int64)}, user)
        export_model(Match(), {"items": torch.zeros(4, dtype=torch.int64), "user": torch.zeros(4, WIDTH)}, match)
        change = client.publish("two-towers", {"user": user, "match": match})
        done = client.wait_change(change.id, timeout_seconds=300)
        print(f"generation {done.generation}: {done.state} {done.message}".rstrip())


if __name__ == "__main__":
    with Client() as api:
        for given in sys.argv[1:] or ["0"]:
            publish(api, int(given))
