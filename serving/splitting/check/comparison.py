"""Runs a snapshot unsplit and split, on the same engine and the same requests, and compares every bit.

The split runs as it would across hosts: each segment is warmed up, the part graph is executed, and each tensor between
segments is checked against its receiver's signature and copied.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from ipnext.errors import IPnextError
from ipnext.model.registry.registry import SNAPSHOT_FILE, PartGraph, SnapshotManifest
from serving.engines.base import LoadedPart, find_engine
from serving.graph import GraphPlan, Tensors, plan_graph, run_graph
from serving.protocol.signature import check_inputs
from serving.protocol.tensors import Array, Tensor
from serving.splitting.check.sample_requests import Request

BATCHES: Final = (1, 2, 64, 257)
ROUNDS: Final = 2
"""Requests per batch size."""


class Drawn(Protocol):
    """A source of requests."""

    def request(self, batch: int) -> Request:
        """Return a request of `batch` rows."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Batch size -> whether all is equal, and a line for each output that is not."""

    equal: Mapping[int, bool]
    differences: tuple[str, ...]


def load(directory: Path) -> LoadedPart:
    """Load a snapshot into this process. LoadFailed."""
    manifest = SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes())
    return find_engine(manifest.engine).load(directory, manifest, {})


class SplitModel:
    """The segments of a split in this process, connected by their graph."""

    def __init__(self, graph: PartGraph, directory: Path) -> None:
        self._plan: GraphPlan = plan_graph(graph)
        self._parts = {part: load(directory / part) for part in sorted(self._plan.parts)}
        for part in self._parts.values():
            part.warm_up()

    def infer(self, request: Request) -> dict[str, Array]:
        """Return the model's outputs."""
        known = {name: request[name] for name in self._plan.request_tensors}
        return {name: tensor.data for name, tensor in asyncio.run(run_graph(self._plan, known, self._call)).items()}

    async def _call(self, part: str, tensors: Tensors) -> Tensors:
        loaded = self._parts[part]
        check_inputs(tensors, loaded.signature)
        answer = loaded.infer({name: tensor.data.copy(order="C") for name, tensor in tensors.items()})
        return {spec.name: Tensor(spec.datatype, answer[spec.name]) for spec in loaded.signature.outputs}


def compare(unsplit: LoadedPart, split: SplitModel, drawn: Drawn, batches: tuple[int, ...] = BATCHES) -> Comparison:
    """Compare at each batch size, with requests from `drawn`."""
    equal: dict[int, bool] = {}
    lines: list[str] = []
    for batch in batches:
        found = [line for _ in range(ROUNDS) for line in _differences(unsplit, split, drawn.request(batch))]
        equal[batch] = not found
        lines += [f"batch {batch}: {line}" for line in dict.fromkeys(found)]
    return Comparison(equal, tuple(lines))


def _differences(unsplit: LoadedPart, split: SplitModel, request: Request) -> list[str]:
    expected = unsplit.infer({name: tensor.data for name, tensor in request.items()})
    try:
        got = split.infer(request)
    except IPnextError as error:
        return [f"the split fails: {error.message}"]
    return [line for name in expected if (line := _difference(name, expected[name], got[name])) is not None]


def _difference(name: str, expected: Array, got: Array) -> str | None:
    if (expected.shape, expected.dtype) != (got.shape, got.dtype):
        return f"output {name!r} is {got.dtype} {list(got.shape)}, not {expected.dtype} {list(expected.shape)}"
    left, right = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (expected, got))
    if np.array_equal(left, right):
        return None
    wrong = (left != right).reshape(-1, expected.dtype.itemsize).any(1)
    return f"output {name!r} differs in {int(wrong.sum()):,} of {wrong.size:,} values"
