"""The model: a logistic ranker, trained on one day's rows and exported with the newest of them as its replay set."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from serving.export import export_model

STEPS = 200


class Ranker(nn.Module):
    """features [B, N] -> score [B]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.top = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Score the rows."""
        return {"score": torch.sigmoid(self.top(features)).squeeze(1)}


def train(data: Path, directory: Path) -> None:
    """Train on `rows.npz` (features [R, N], clicked [R]) of a day, and export the snapshot."""
    with np.load(data / "rows.npz") as rows:
        features = torch.from_numpy(rows["features"].astype(np.float32))
        clicked = torch.from_numpy(rows["clicked"].astype(np.float32))
    newest = len(features) // 5
    torch.manual_seed(7)
    ranker = Ranker(features.shape[1])
    optimiser = torch.optim.Adam(ranker.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimiser.zero_grad()
        scores = ranker(features[:-newest])["score"]
        loss = nn.functional.binary_cross_entropy(scores, clicked[:-newest])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    replay = {"features": features[-newest:], "labels:score": clicked[-newest:]}
    export_model(ranker, {"features": features[:4]}, directory, replay=replay)
