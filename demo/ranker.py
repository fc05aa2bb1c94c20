"""A small DLRM-like ranker in two parts: embedding tables (sparse) and the interaction network (dense)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from demo.dataset import Dataset, Interactions

WIDTH = 16
"""Length of an embedding."""


class SparsePart(nn.Module):
    """Embedding lookups. ids [B, 6] and genres [B, 6] -> embeddings [B, 7, WIDTH] and the part's stamp [B]."""

    offsets: Tensor
    stamp: Tensor

    def __init__(self, sizes: Sequence[int], genres: int) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(sizes), WIDTH)
        self.genre = nn.Embedding(genres, WIDTH, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.05)
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum(sizes)[:-1]]))
        self.register_buffer("stamp", torch.tensor(0))

    def forward(self, ids: Tensor, genres: Tensor) -> dict[str, Tensor]:
        """Look up every field; a film's genres are summed."""
        fields = self.table(ids + self.offsets)
        genre = self.genre(genres).sum(dim=1, keepdim=True)
        return {"embeddings": torch.cat([fields, genre], dim=1), "stamp": self.stamp + ids[:, 0] * 0}


class DensePart(nn.Module):
    """features [B, 4], embeddings [B, 7, WIDTH], sparse_stamp [B] -> score [B] and stamps [B, 2] (sparse, dense).

    The stamps say which training run each part came from: an answer that holds two different ones was mixed,
    whatever its headers claim.
    """

    stamp: Tensor
    upper: Tensor

    def __init__(self, features: int = 4, fields: int = 7) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, WIDTH), nn.ReLU())
        pairs = (fields + 1) * fields // 2
        self.top = nn.Sequential(
            nn.Linear(pairs + WIDTH * (fields + 1), 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1)
        )
        rows, columns = torch.triu_indices(fields + 1, fields + 1, offset=1)
        self.register_buffer("upper", rows * (fields + 1) + columns)
        self.register_buffer("stamp", torch.tensor(0))

    def forward(self, features: Tensor, embeddings: Tensor, sparse_stamp: Tensor) -> dict[str, Tensor]:
        """Pairwise dot products of all fields and the dense features, then an MLP."""
        vectors = torch.cat([embeddings, self.bottom(features).unsqueeze(1)], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)[:, self.upper]
        score = torch.sigmoid(self.top(torch.cat([dots, vectors.flatten(1)], dim=1)).squeeze(1))
        return {"score": score, "stamps": torch.stack([sparse_stamp, self.stamp + sparse_stamp * 0], dim=1)}


class Ranker(nn.Module):
    """Both parts as one model: what training and offline scoring see."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.sparse = SparsePart(dataset.sizes, dataset.genres)
        self.dense = DensePart()

    def forward(self, ids: Tensor, genres: Tensor, features: Tensor) -> Tensor:
        """Return the probability that each film is liked, [B]."""
        looked_up = self.sparse(ids, genres)
        score: Tensor = self.dense(features, looked_up["embeddings"], looked_up["stamp"])["score"]
        return score

    def mark(self, stamp: int) -> None:
        """Write the training run's number into both parts."""
        self.sparse.stamp.fill_(stamp)
        self.dense.stamp.fill_(stamp)


def train(ranker: Ranker, rows: Interactions, *, epochs: int, seed: int, batch: int = 512) -> Iterator[float]:
    """Train in place; yields the mean loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(ranker.parameters(), lr=2e-3, weight_decay=1e-5)
    ids, genres, features, label = map(torch.from_numpy, (rows.ids, rows.genres, rows.features, rows.label))
    for _ in range(epochs):
        ranker.train()
        total = 0.0
        for chosen in torch.randperm(len(rows), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            score = ranker(ids[chosen], genres[chosen], features[chosen])
            loss = nn.functional.binary_cross_entropy(score, label[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach()) * len(chosen)
        ranker.eval()
        yield total / len(rows)


def score(ranker: Ranker, rows: Interactions, *, batch: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Scores [n] in process, in the batches that serving is asked for."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            some = rows.rows(slice(start, start + batch))
            parts.append(ranker(*map(torch.from_numpy, (some.ids, some.genres, some.features))).numpy())
    return np.concatenate(parts)


def auc(rows: Interactions, scores: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score(rows.label, scores))
