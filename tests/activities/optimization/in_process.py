"""A small ranker, and its steps and cuts in this process: with real programs, but no process of their own."""

from pathlib import Path

import torch
from torch import nn

from activities.optimization.split_process import CutRefused
from activities.optimization.step_process import StepRefused
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.status import Reason
from serving.optimizing.derive import derive_snapshot
from serving.splitting.split import split_snapshot
from tests.serving.optimizing.models import export

KINDS = ("cpu", "small")
WHOLE = {"name": "whole", "engine": "torch", "hardware": [{"kind": kind, "units": 1, "qps": 100} for kind in KINDS]}
SPLIT = {"parts": [{"name": "sparse", "modules": ["tables.*"]}], "default": "dense"}


class Ranker(nn.Module):
    """user [B], item [B] -> score [B]."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(40, 16) for name in ("user", "item")})
        self.top = nn.Linear(16, 1)

    def forward(self, user, item):
        return {"score": self.top(self.tables["user"](user) * self.tables["item"](item)).squeeze(1)}


def export_ranker(directory: Path) -> Path:
    ids = torch.arange(4)
    export(directory, Ranker(), {"user": ids, "item": ids})
    return directory


def derive(source, step, out, beat):
    """Derive as the process of a step does."""
    try:
        return derive_snapshot(source.snapshot, step, out, replay=source.replay).report
    except InvalidInput as error:
        raise StepRefused(error.message) from error


def cut(snapshot, policy, out, beat):
    """Split as the process that cuts does."""
    try:
        return split_snapshot(snapshot, policy, out=out, verify=True)
    except InvalidInput as error:
        raise CutRefused(Reason.SPLIT_REFUSED, error.message) from error
