"""Exports a small ranker with a replay set of two segments of users: `export.py DIRECTORY [BIAS]`.

BIAS is what the model adds for users of segment 1: 0 passes the audit of `model.yaml`, 1 does not.
"""

import sys

import torch
from torch import Tensor, nn

from serving.export import export_model

ROWS = 400


class Ranker(nn.Module):
    """features [B, 4], segment [B, 1] -> score [B]."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.top = nn.Linear(4, 1)
        self.segment = nn.Embedding(2, 1)
        self.segment.weight.data = torch.tensor([[0.0], [bias]])

    def forward(self, features: Tensor, segment: Tensor) -> dict[str, Tensor]:
        """Score the features, with what each segment gets besides."""
        return {"score": torch.sigmoid(self.top(features) + self.segment(segment[:, 0])).squeeze(1)}


def main(directory: str, bias: float = 0.0) -> None:
    """Export, with drawn requests as the replay set."""
    torch.manual_seed(7)
    random = torch.Generator().manual_seed(7)
    segment = torch.arange(ROWS, dtype=torch.int64).remainder(2).reshape(ROWS, 1)
    replay = {"features": torch.randn(ROWS, 4, generator=random), "segment": segment}
    manifest = export_model(
        Ranker(bias), {name: tensor[:4] for name, tensor in replay.items()}, directory, replay=replay
    )
    print(f"{directory}: snapshot {manifest.digest}")


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:3]))
