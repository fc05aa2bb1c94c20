"""What the platform serves in a run: models whose answers name the snapshot of each part that answered.

`pair` has two parts and is locked: an answer from two generations shows two marks that belong to none. `solo` has one
part; a newer publish turns its rollout round, and it may dip where the supply is short. `gated` has one part, a gate on
latency and on what it predicts, and a canary that a person approves. All may be served in either region, as prices have
it. `brief-N` are models that come and soon go again, which nobody asks for answers.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ipnext.artifacts.layout import manifest_bytes, read_manifest
from ipnext.model.registry.registry import SNAPSHOT_FILE
from serving.export import export_model
from tests.fleets import two_regions
from tests.marked_parts import First, Second

REGIONS = ("us-east", "eu-west")
PARTS: Mapping[str, tuple[str, ...]] = {"pair": ("first", "second"), "solo": ("only",), "gated": ("scored",)}
JUDGED = APPROVED = "gated"
Brief = Literal["plain", "split", "optimized", "shadowed", "sourced"]
"""What a brief model has: nothing more, a part that is cut, a step of optimization, a shadow before its transition, or
a source."""
BRIEFS: tuple[Brief, ...] = ("plain", "split", "optimized", "shadowed", "sourced")
Bad = Literal["slow", "shifted"]
"""What a gate has to find: answers that take too long, or that predict otherwise."""
DIPS: Mapping[str, float] = {"solo": 0.5}
"""Model -> the share of what it needs that may be missing where the supply is short."""
REPLICA_QPS = 100.0
BASE_DEMAND = 60.0
"""Requests a second in each region: one replica's worth."""
TOO_MANY_UNITS = 1000
"""Of one replica: more than any region has, so that nothing can be placed."""
UNITS = 16
"""Of supply in each region; a replica takes one."""
MORE_DEMAND = 120.0
"""Two replicas' worth."""

_PAIR = """
apiVersion: ipnext/v1
kind: Model
metadata: {{name: pair, owner: nemesis}}
spec:
  parts:
    - {{name: first, hardware: [{{kind: cpu, units: {units}, qps: 100}}]}}
    - {{name: second, hardware: [{{kind: cpu, units: {units}, qps: 100}}]}}
  graph:
    nodes:
      - {{name: first, part: first, inputs: {{x: request.x}}}}
      - {{name: second, part: second, inputs: {{x: first.output}}}}
    outputs: {{sum: second.sum, marks: second.marks}}
  demand: [{{region: us-east, qps: {qps}}}, {{region: eu-west, qps: {qps}}}]
  latencyToleranceMs: 120
  rollout: {{canary: 0.3, maxStep: 0.5, holdSeconds: 0.3, deadlineSeconds: 60}}
"""

_SOLO = """
apiVersion: ipnext/v1
kind: Model
metadata: {{name: solo, owner: nemesis}}
spec:
  parts:
    - {{name: only, hardware: [{{kind: cpu, units: {units}, qps: 100}}]}}
  demand: [{{region: us-east, qps: {qps}}}, {{region: eu-west, qps: {qps}}}]
  latencyToleranceMs: 120
  rollout:
    {{canary: 0.5, maxStep: 0.5, deadlineSeconds: 60, onNewer: turn, refresh: {refresh}, whenShort: dip, maxDip: 0.5}}
"""

_GATED = """
apiVersion: ipnext/v1
kind: Model
metadata: {{name: gated, owner: nemesis}}
spec:
  parts:
    - {{name: scored, hardware: [{{kind: cpu, units: {units}, qps: 100}}]}}
  demand: [{{region: us-east, qps: {qps}}}, {{region: eu-west, qps: {qps}}}]
  latencyToleranceMs: 120
  rollout:
    canary: 0.5
    maxStep: 0.5
    deadlineSeconds: 60
    approval: canary
    manualDeadlineSeconds: 30
    gate:
      maxErrorRate: 0.05
      maxLatencyMs: {{p50: 400}}
      maxDrift: 0.5
      maxMeanShift: 2
      outputs: [sum]
      minRequests: 20
      waitSeconds: {patience}
      onTooFew: {few}
"""

_BRIEF = """
apiVersion: ipnext/v1
kind: Model
metadata: {{name: {name}, owner: nemesis}}
spec:
  parts: [{{name: {part}, hardware: [{{kind: cpu, units: {units}, qps: 100}}]}}]
  demand: [{{region: us-east, qps: 10}}]
"""

_BRIEF_MORE: Mapping[Brief, str] = {
    "plain": "",
    "split": """
  split: {{parts: [{{name: all, modules: ["*"]}}]}}
""",
    "optimized": """
  optimization: [{{quantize: {{embeddings: int8, maxError: 1.0}}}}]
""",
    "shadowed": """
  lifecycle:
    - stage: shadow
      before: transition
      settings: {{share: 1.0, minRequests: 1, seconds: 1, onTooFew: pass}}
""",
    "sourced": """
  sources: [{{name: nightly, every: 1s, directory: {{path: {source}}}}}]
""",
}

_FREEZE = """
apiVersion: ipnext/v1
kind: Freeze
metadata: {{name: {name}}}
spec:
  reason: nemesis
  scope: {{models: [{model}]}}
  windows: [{{start: {since}, duration: P2D}}]
"""


def manifest(
    model: str,
    qps: float = BASE_DEMAND,
    *,
    refresh: str = "auto",
    few: str = "fail",
    brief: Brief = "plain",
    units: int = 1,
    source: Path | None = None,
    part: str = "only",
) -> str:
    """The manifest of a model, with so many requests a second in each region.

    `refresh` is how `solo` gets new snapshots, `few` what the gate of `gated` says where nobody asks; before users do,
    it does not wait for them. `brief` is what a brief model has, `source` the directory of one that is sourced,
    `part` its part. A replica takes `units` of supply.
    """
    text = {"pair": _PAIR, "solo": _SOLO, "gated": _GATED}.get(model, _BRIEF + _BRIEF_MORE[brief])
    patience = 15 if few == "fail" else 0
    own = {"source": source or "", "part": part}
    return text.format(name=model, qps=qps, units=units, refresh=refresh, few=few, patience=patience, **own)


def freeze(name: str, model: str, *, since: datetime) -> str:
    """A freeze of one model, from then on for two days: whoever made it lifts it."""
    return _FREEZE.format(name=name, model=model, since=since.strftime("%Y-%m-%dT%H:%M:%S"))


def fleet(*, units: int = UNITS, east_cost: float = 1.0, west_cost: float = 1.1) -> str:
    """The fleet: the same supply in both regions, at a price for each."""
    return two_regions(units, units, east_cost=east_cost, west_cost=west_cost)


class Only(nn.Module):
    """x [B, 1] -> sum [B] and the mark of this snapshot [B, 1]."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.tensor([mark]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sum": (x + self.mark).sum(dim=1), "marks": self.mark + x * 0}


SLOW_WIDTH, SLOW_STEPS = 1024, 16
MARKS_PER_ONE = 64
"""Users ask with whole numbers below 1000: hundreds of marks are little beside how far those are apart."""
SHIFT = 100_000.0
"""What a bad generation adds to its mark: far beyond all that users ask with."""


class Looking(nn.Module):
    """As Only, with a table in which the same row is looked up."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.tensor([mark]))
        self.table = nn.Embedding(64, 64)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        row = self.table((x[:, 0] * 0).long()).sum(dim=1)
        return {"sum": (x + self.mark).sum(dim=1) + row * 0, "marks": self.mark + x * 0}


class Slow(nn.Module):
    """As Only, behind some ten milliards of multiplications."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.tensor([mark]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        idle = (x[:1] * 0 + 0.001).expand(SLOW_WIDTH, SLOW_WIDTH)
        for _ in range(SLOW_STEPS):
            idle = torch.tanh(idle @ idle)
        return {"sum": (x + self.mark).sum(dim=1) + idle.mean() * 0, "marks": self.mark + x * 0}


@dataclass(frozen=True)
class Published:
    """A snapshot on disk, ready to be published."""

    directory: Path
    digest: str
    mark: float


_MODULES: Mapping[str, tuple[type[First | Second | Only | Looking | Slow], int]] = {
    "first": (First, 1),
    "second": (Second, 2),
    "only": (Only, 1),
    "scored": (Only, 1),
    "looking": (Looking, 1),
}
"""Part -> its module, and how wide its input is."""


def mark_of(number: int, *, shifted: bool = False) -> float:
    """The mark of the n-th snapshot: exact in 32 bits, alone and added to what users ask with.

    All marks of a run lie close together, so that a gate that compares generations finds drift in the shifted ones
    only.
    """
    return number / MARKS_PER_ONE + (SHIFT if shifted else 0.0)


class Forge:
    """Makes snapshots with marks that were never used before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last = 0

    def source_of(self, model: str) -> Path:
        """The directory that a model's source watches."""
        place = self._directory / "sources" / model
        place.mkdir(parents=True)
        return place

    def bring(self, source: Path) -> None:
        """A new snapshot of a part `only`, moved into a source's directory."""
        made = self.make("only")
        made.directory.rename(source / made.directory.name)

    def make(self, part: str, *, poisoned: bool = False, bad: Bad | None = None) -> Published:
        """A new snapshot of a part; a poisoned one holds NaN and has to be refused, a bad one has to go back."""
        self._last += 1
        mark = float("nan") if poisoned else mark_of(self._last, shifted=bad == "shifted")
        kind, width = _MODULES[part]
        kind = Slow if bad == "slow" else kind
        directory = self._directory / f"{self._last}-{part}"
        export_model(kind(mark).eval(), {"x": torch.zeros(2, width)}, directory)
        return Published(directory, digest_of(directory), mark)


def digest_of(directory: Path) -> str:
    """The digest that the platform gives a snapshot directory."""
    stored = read_manifest((directory / SNAPSHOT_FILE).read_bytes(), str(directory))
    return hashlib.sha256(manifest_bytes(stored)).hexdigest()
