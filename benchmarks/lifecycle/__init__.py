"""What the benchmarks of the lifecycle share: a tiny model on the embedded platform."""

from pathlib import Path

import torch
from torch import Tensor, nn

from serving.export import export_model


class Tiny(nn.Module):
    """x [B, 4] -> score [B]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.dense = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a weighted sum."""
        score: Tensor = self.dense(x)[:, 0]
        return score


def snapshots(directory: Path, count: int) -> list[Path]:
    """Snapshot directories of `count` different weights."""
    found = []
    for seed in range(count):
        found.append(directory / str(seed))
        export_model(Tiny(seed).eval(), {"x": torch.zeros(2, 4)}, found[-1])
    return found


def manifest(name: str, **rollout: object) -> str:
    """Return the manifest of a model of one part, with one replica in each of two regions."""
    fields = ", ".join(f"{key}: {value}" for key, value in rollout.items())
    return f"""
apiVersion: ipnext/v1
kind: Model
metadata: {{name: {name}, owner: bench}}
spec:
  parts: [{{name: dense, hardware: [{{kind: cpu, units: 1, qps: 100}}]}}]
  demand: [{{region: us-east, qps: 50}}, {{region: eu-west, qps: 50}}]
  latencyToleranceMs: 50
  rollout: {{{fields}}}
"""
