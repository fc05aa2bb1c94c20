"""The requests that a snapshot and its derivative are compared on: a replay set, or drawn ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from ipnext.errors import InvalidInput, IPnextError
from ipnext.model.registry.optimization import REPLAY_FACTS, REPLAY_GROUPS, REPLAY_LABELS
from ipnext.model.registry.registry import Signature
from serving.engines.base import LoadedPart
from serving.engines.torch.engine import to_numpy
from serving.export.export import DATATYPES
from serving.protocol.signature import check_inputs
from serving.protocol.tensors import Array, Tensor
from serving.splitting.check.ranges import ranges_of
from serving.splitting.check.sample_requests import Request, RequestSampler
from serving.splitting.split import read_split_program

BATCH: Final = 256
"""Rows of a request."""
DRAWN_BATCHES: Final = 8


@dataclass(frozen=True, slots=True)
class Replay:
    """Requests in their order, and what is known of their rows."""

    requests: tuple[Request, ...]
    source: Literal["replay", "drawn"]
    labels: Mapping[str, Array] = field(default_factory=dict)
    """Output -> label of each row, 0.0 or 1.0."""
    groups: Mapping[str, Array] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of all requests."""
        return sum(_rows(request) for request in self.requests)

    def rows_of(self, batch: int, number: int) -> dict[str, Array]:
        """Return the inputs of one request of `batch` rows; other numbers give other rows."""
        request = self.requests[number % len(self.requests)]
        rows = (np.arange(batch) + number * batch) % _rows(request)
        return {name: np.ascontiguousarray(tensor.data[rows]) for name, tensor in request.items()}


def read_replay(path: Path, signature: Signature) -> Replay:
    """Read a replay set: safetensors with a tensor for each input, dimension 0 being the row.

    InvalidInput if it can't be read, lacks an input, or has other tensors than inputs, labels and groups.
    """
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        msg = f"{path.name!r} can't be read as safetensors: {error}"
        raise _unfit(msg) from error
    inputs = {name: tensor for name, tensor in given.items() if not name.startswith(REPLAY_FACTS)}
    facts = {name: to_numpy(tensor) for name, tensor in given.items() if name not in inputs}
    tensors = {
        name: Tensor(DATATYPES[tensor.dtype], to_numpy(tensor))
        for name, tensor in inputs.items()
        if tensor.dtype in DATATYPES
    }
    try:
        check_inputs(tensors, signature)
    except InvalidInput as error:
        raise _unfit(error.message) from error
    rows = _rows(tensors)
    labels = {name: _labels(name, data, rows) for name, data in _facts(facts, REPLAY_LABELS, signature)}
    groups = {
        name: _column(f"{REPLAY_GROUPS}{name}", data, rows) for name, data in _facts(facts, REPLAY_GROUPS, signature)
    }
    return Replay(tuple(_batches(tensors, rows)), "replay", labels, groups)


def draw_replay(directory: Path, part: LoadedPart) -> Replay:
    """Draw requests by the signature and the sizes of the tables that ids are looked up in."""
    sampler = RequestSampler(part.signature, ranges_of(read_split_program(directory)), partial(_answers, part))
    return Replay(tuple(sampler.request(BATCH) for _ in range(DRAWN_BATCHES)), "drawn")


def _answers(part: LoadedPart, request: Request) -> bool:
    """Whether the snapshot accepts a request; it refuses indices out of range."""
    try:
        part.infer({name: tensor.data for name, tensor in request.items()})
    except IPnextError:
        return False
    return True


def _facts(given: Mapping[str, Array], prefix: str, signature: Signature) -> Iterator[tuple[str, Array]]:
    outputs = [spec.name for spec in signature.outputs]
    for name, data in sorted(given.items()):
        if name.startswith(prefix):
            output = name.removeprefix(prefix)
            if output not in outputs:
                msg = f"{name}: {output!r} is no output; allowed: {', '.join(outputs)}"
                raise _unfit(msg)
            yield output, data


def _labels(output: str, data: Array, rows: int) -> Array:
    found = _column(f"{REPLAY_LABELS}{output}", data, rows).astype(np.float64)
    if not np.isin(found, (0.0, 1.0)).all():
        msg = f"{REPLAY_LABELS}{output}: a label is 0 or 1"
        raise _unfit(msg)
    return found


def _column(name: str, data: Array, rows: int) -> Array:
    if data.size != rows or len(data) != rows:
        msg = f"{name}: has shape {list(data.shape)}; needed: one value for each of the {rows} rows"
        raise _unfit(msg)
    return data.reshape(-1)


def _batches(tensors: Request, rows: int) -> Iterator[Request]:
    if not rows:
        msg = "it has no rows"
        raise _unfit(msg)
    for start in range(0, rows, BATCH):
        yield {
            name: Tensor(t.datatype, np.ascontiguousarray(t.data[start : start + BATCH])) for name, t in tensors.items()
        }


def _rows(request: Request) -> int:
    return len(next(iter(request.values())).data)


def _unfit(text: str) -> InvalidInput:
    return InvalidInput(f"replay: {text}", field="replay")
