"""Trains a ranking model on ml-100k, and exports it with a replay set: the newest fifth of the ratings.

`python examples/quantized-ranker/export.py DIRECTORY`, from the repository; the data comes with the demo's packages.
"""

import sys
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from demo.dataset import Dataset, Interactions, dataset_directory, load
from serving.export import export_model

WIDTH = 64
"""Length of an embedding."""
SEED = 7


class Ranker(nn.Module):
    """ids [B, 6], genres [B, 6], features [B, 4] -> score [B]: the probability that a user likes a film."""

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        self.user, self.film = nn.Embedding(data.sizes[0], WIDTH), nn.Embedding(data.sizes[1], WIDTH)
        self.genre = nn.Embedding(data.genres, WIDTH, padding_idx=0)
        for table in (self.user, self.film):
            nn.init.normal_(table.weight, std=0.05)
        self.top = nn.Sequential(
            nn.Linear(3 * WIDTH + 4, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, ids: Tensor, genres: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Join the embeddings of user, film and genres with what was known before the rating."""
        rows = [self.user(ids[:, 0]), self.film(ids[:, 1]), self.genre(genres).sum(1), features]
        return {"score": torch.sigmoid(self.top(torch.cat(rows, 1))).squeeze(1)}


def tensors(rows: Interactions) -> Mapping[str, Tensor]:
    """Return the inputs of rows."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in rows.tensors().items()}


def train(ranker: Ranker, rows: Interactions, *, epochs: int = 3) -> None:
    """Train in place."""
    random = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.Adam(ranker.parameters(), lr=2e-3, weight_decay=1e-5)
    given, labels = tensors(rows), torch.from_numpy(rows.label)
    for _ in range(epochs):
        ranker.train()
        for chosen in torch.randperm(len(rows), generator=random).split(512):
            optimiser.zero_grad()
            scores = ranker(**{name: tensor[chosen] for name, tensor in given.items()})["score"]
            nn.functional.binary_cross_entropy(scores, labels[chosen]).backward()
            optimiser.step()
    ranker.eval()


def main(directory: str) -> None:
    """Train on the oldest four fifths of the ratings, and export."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    data = load(dataset_directory())
    ranker = Ranker(data)
    train(ranker, data.between(0, 0.8))
    test = data.between(0.8, 1)
    replay = {**tensors(test), "labels:score": torch.from_numpy(test.label)}
    manifest = export_model(
        ranker, {name: tensor[:4] for name, tensor in tensors(test).items()}, directory, replay=replay
    )
    print(f"{directory}: snapshot {manifest.digest}")


if __name__ == "__main__":
    main(sys.argv[1])
