"""Models with tables, and their snapshots with and without a replay set."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model

ROWS = {"user": 120, "item": 200}
WIDTH = 64


class Ranker(nn.Module):
    """user [B], item [B], history [B, 4] -> score [B]; a bag, a lookup of two dimensions, tied and small tables."""

    def __init__(self, mode="mean"):
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(rows, WIDTH) for name, rows in ROWS.items()})
        self.bag = nn.EmbeddingBag(150, WIDTH, mode=mode)
        self.country = nn.Embedding(3, WIDTH)
        self.top = nn.Sequential(nn.Linear(5 * WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user, item, history):
        liked = self.tables["item"](history).mean(1)
        rows = [self.tables["user"](user), self.tables["item"](item), liked, self.bag(history)]
        x = torch.cat([*rows, self.country(user % 3)], 1)
        return {"score": torch.sigmoid(self.top(x)).squeeze(1), "best": liked.argmax(1)}


def inputs(batch, seed=0):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(0, 100, shape, generator=random)  # noqa: E731
    return {"user": draw(batch), "item": draw(batch), "history": draw(batch, 4)}


def export(directory: Path, module=None, given=None, **more) -> SnapshotManifest:
    torch.manual_seed(0)
    return export_model(module or Ranker(), given or inputs(4), directory, **more)


def step(embeddings="int8", **more) -> OptimizationStep:
    return OptimizationStep.model_validate({"quantize": {"embeddings": embeddings, **more}})


def load(directory: Path, *, warm=True):
    manifest = SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes())
    part = TorchEngine().load(directory, manifest, {})
    if warm:
        part.warm_up()
    return part


def arrays(batch, seed=0):
    return {name: tensor.numpy() for name, tensor in inputs(batch, seed).items()}


def write_replay(path: Path, part, rows=600) -> None:
    save_file(draw_replay(part, rows), path)


def draw_replay(part, rows):
    """Labels are drawn by the part's own scores."""
    given = inputs(rows, seed=1)
    scores = part.infer({name: tensor.numpy() for name, tensor in given.items()})["score"]
    labels = np.random.default_rng(0).random(rows) < scores
    return {**given, "labels:score": torch.from_numpy(labels.astype(np.float32))}
