"""Runs the golden requests of a snapshot, and compares its outputs with the expected ones within tolerances."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ipnext.artifacts.bounded_json import read_document
from ipnext.errors import InvalidInput
from ipnext.model.echoes import show_value
from ipnext.model.registry.checking import (
    LARGEST_GOLDEN_BYTES,
    MOST_GOLDEN_SEPARATORS,
    GoldenOutput,
    GoldenReport,
    GoldenRequest,
    GoldenSet,
)
from ipnext.model.registry.registry import Datatype
from serving.engines.base import LoadedPart, find_engine
from serving.protocol.signature import check_inputs
from serving.protocol.tensors import FLOATS, Array, bf16_to_float32, from_json
from serving.splitting.split import read_manifest

SHOWN: Final = 20
"""Mismatches that a report describes; further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one request against the expected one."""

    values: int
    largest_error: float
    mismatches: int
    shown: tuple[str, ...]


def run_golden(directory: Path, golden: Path) -> GoldenReport:
    """Run the golden requests of a file on the snapshot in `directory`.

    InvalidInput if the file can't be read, or a request does not fit the snapshot.
    """
    manifest = read_manifest(directory)
    wanted = read_golden(golden)
    part = find_engine(manifest.engine).load(directory, manifest, {})
    found = [each for request in wanted.requests for each in _run(part, request)]
    return GoldenReport(
        requests=len(wanted.requests),
        values=sum(each.values for each in found),
        largest_error=max(each.largest_error for each in found),
        mismatches=sum(each.mismatches for each in found),
        shown=tuple(line for each in found for line in each.shown)[:SHOWN],
    )


def read_golden(path: Path) -> GoldenSet:
    """Read a file of golden requests. InvalidInput names the field."""
    size = path.stat().st_size
    if size > LARGEST_GOLDEN_BYTES:
        msg = f"{path.name} has {size} bytes; allowed: {LARGEST_GOLDEN_BYTES}"
        raise InvalidInput(msg, field=path.name)
    try:
        return read_document(path.read_bytes(), GoldenSet, most_separators=MOST_GOLDEN_SEPARATORS)
    except InvalidInput as error:
        msg = f"{path.name}: {error.message}"
        raise InvalidInput(msg, field=path.name) from error


def _run(part: LoadedPart, request: GoldenRequest) -> list[Comparison]:
    """Run one request. InvalidInput names it if it does not fit the snapshot."""
    try:
        inputs = {each.name: from_json(each.name, each.datatype, each.shape, each.data) for each in request.inputs}
        check_inputs(inputs, part.signature)
        answer = part.infer({name: tensor.data for name, tensor in inputs.items()})
        return [_compare(part, request.name, expected, answer) for expected in request.outputs]
    except InvalidInput as error:
        msg = f"request {request.name!r}: {error.message}"
        raise InvalidInput(msg, field=request.name) from error


def _compare(part: LoadedPart, request: str, expected: GoldenOutput, answer: Mapping[str, Array]) -> Comparison:
    datatypes = {spec.name: spec.datatype for spec in part.signature.outputs}
    if datatypes.get(expected.name) != expected.datatype:
        known = ", ".join(f"{name} ({datatype})" for name, datatype in datatypes.items())
        msg = f"output {expected.name!r} of {expected.datatype} is not among the outputs {known}"
        raise InvalidInput(msg, field=expected.name)
    wanted = from_json(expected.name, expected.datatype, expected.shape, expected.data).data
    got = answer[expected.name]
    where = f"request {request!r}, output {expected.name!r}"
    if wanted.shape != got.shape:
        return Comparison(0, 0.0, 1, (f"{where}: expected shape {list(wanted.shape)}, got shape {list(got.shape)}",))
    wanted, got = _plain(expected.datatype, wanted), _plain(expected.datatype, got)
    if expected.datatype not in FLOATS:
        return _comparison(where, wanted, got, wanted != got, 0.0)
    errors = np.abs(got - wanted)
    with np.errstate(invalid="ignore"):
        apart = ~(errors <= expected.absolute + expected.relative * np.abs(wanted))  # NaN is apart, too
    return _comparison(where, wanted, got, apart, float(np.nan_to_num(errors, nan=np.inf).max(initial=0.0)))


def _comparison(where: str, wanted: Array, got: Array, apart: Array, largest: float) -> Comparison:
    places = np.argwhere(apart)
    lines = tuple(
        f"{where}{list(place)}: expected {_format_value(wanted[place])}, got {_format_value(got[place])}"
        for place in (tuple(map(int, steps)) for steps in places[:SHOWN])
    )
    finite = min(largest, float(np.finfo(np.float64).max))
    return Comparison(wanted.size, finite, len(places), lines)


def _plain(datatype: Datatype, values: Array) -> Array:
    """Return floats as float64; other values as they are."""
    if datatype not in FLOATS:
        return values
    return (bf16_to_float32(values) if datatype == "BF16" else values).astype(np.float64)


def _format_value(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else show_value(value)
