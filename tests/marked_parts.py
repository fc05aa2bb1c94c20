"""A model of two parts whose answers name the snapshot of each part that answered."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from serving.export import export_model


class First(nn.Module):
    """x [B, 1] -> [B, 2]: x and the mark of this snapshot."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.tensor([mark]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.mark + x * 0], dim=1)


class Second(nn.Module):
    """[B, 2] -> sum [B] and the marks of both parts [B, 2]."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.tensor([mark]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": x.sum(dim=1), "marks": torch.cat([x[:, 1:], self.mark + x[:, :1] * 0], dim=1)}


def export_pair(directory: Path, mark: float) -> Mapping[str, Path]:
    """Export both parts with the same mark, `first` and `second`."""
    export_model(First(mark).eval(), {"x": torch.zeros(2, 1)}, directory / "first")
    export_model(Second(mark).eval(), {"x": torch.zeros(2, 2)}, directory / "second")
    return {"first": directory / "first", "second": directory / "second"}
