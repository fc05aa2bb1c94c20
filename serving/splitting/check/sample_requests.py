"""Requests for the comparison of a split with its snapshot: drawn by the signature, or rows of given examples."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.engines.torch.engine import to_numpy
from serving.export.export import DATATYPES
from serving.protocol.signature import check_inputs
from serving.protocol.tensors import DTYPES, FLOATS, Tensor, float32_to_bf16
from serving.splitting.check.ranges import Range

Request = dict[str, Tensor]
_TRIAL_BATCH: Final = 257


class RequestSampler:
    """Draws requests that the snapshot accepts. `accepts` runs it; ranges are halved until it does."""

    def __init__(self, signature: Signature, ranges: Mapping[str, Range], accepts: Callable[[Request], bool]) -> None:
        self._signature = signature
        self._accepts = accepts
        self._random = np.random.default_rng(0)
        self._ranges = dict(ranges)
        for name in self._ranges:
            self._narrow(name)

    def request(self, batch: int) -> Request:
        """Return a request that the snapshot accepts. InvalidInput if none is found."""
        while True:
            request = self._draw(batch, self._ranges)
            if self._accepts(request):
                return request
            if all(limits.limit == 1 for limits in self._ranges.values()):
                break
            self._ranges = {name: replace(r, limit=max(r.limit // 2, 1)) for name, r in self._ranges.items()}
        ones = {name: Tensor(t.datatype, np.ones_like(t.data)) for name, t in request.items()}
        if self._accepts(ones):
            return ones
        msg = f"no request of batch {batch} was found that the snapshot answers; give real ones by --examples"
        raise InvalidInput(msg, field="examples")

    def _narrow(self, name: str) -> None:
        """Narrow one input's range by itself, so that its limit does not narrow the others'."""
        zero = {other: Range(1, r.offsets, r.each) for other, r in self._ranges.items()}
        while self._ranges[name].limit > 1 and self._accepts(self._draw(_TRIAL_BATCH, zero)):
            if self._accepts(self._draw(_TRIAL_BATCH, zero | {name: self._ranges[name]})):
                return
            self._ranges[name] = replace(self._ranges[name], limit=self._ranges[name].limit // 2)

    def _draw(self, batch: int, ranges: Mapping[str, Range]) -> Request:
        return {spec.name: self._tensor(spec, batch, ranges[spec.name]) for spec in self._signature.inputs}

    def _tensor(self, spec: TensorSpec, batch: int, limits: Range) -> Tensor:
        shape = [batch if size == -1 else size for size in spec.shape]
        if spec.datatype == "BF16":
            values = float32_to_bf16(self._random.standard_normal(shape))
        elif spec.datatype in FLOATS:
            values = self._random.standard_normal(shape).astype(DTYPES[spec.datatype])
        elif spec.datatype == "BOOL":
            values = self._random.random(shape) < 0.5
        elif limits.offsets:
            values = np.sort(self._random.integers(0, max(batch * limits.each, 1), shape), 0)
            values[:1] = 0
        else:
            limit = min(limits.limit, int(np.iinfo(DTYPES[spec.datatype]).max) + 1)
            values = self._random.integers(0, limit, shape)
        return Tensor(spec.datatype, np.ascontiguousarray(values, DTYPES[spec.datatype]))


class Examples:
    """Draws rows of given requests, so that every value is known to the model."""

    def __init__(self, signature: Signature, path: Path) -> None:
        self._examples = _read(signature, path)
        self._random = np.random.default_rng(0)

    def request(self, batch: int) -> Request:
        """Return the same rows of every input, some of them repeated."""
        count = len(next(iter(self._examples.values())).data)
        rows = self._random.integers(0, count, batch)
        return {name: Tensor(t.datatype, t.data[rows]) for name, t in self._examples.items()}


def _read(signature: Signature, path: Path) -> Request:
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        msg = f"examples: {str(path)!r} cannot be read as safetensors: {error}"
        raise InvalidInput(msg, field="examples", value=str(path)) from error
    read = {name: Tensor(DATATYPES[tensor.dtype], to_numpy(tensor)) for name, tensor in given.items()}
    check_inputs(read, signature)
    return read
