"""Predictions in JSON, made of the first rows of a snapshot's replay set."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

import numpy as np

from ipnext.artifacts.checkpoints.tensor_headers import MalformedTensors, exactly, read_places, size_fault
from ipnext.model.gate.live import LARGEST_BODIES, MOST_BODIES
from ipnext.model.registry.registry import Signature

_TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "BOOL": ("?", "BOOL"),
    **{f"{kind}{bits}": (f"<{kind.lower()}{bits // 8}", f"INT{bits}") for kind in "I" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"<u{bits // 8}", f"UINT{bits}") for bits in (8, 16, 32, 64)},
    "F32": ("<f4", "FP32"),
    "F64": ("<f8", "FP64"),
}
"""Safetensors dtype -> numpy's, and the datatype of V2. JSON has no other floats."""
_SKIPPED_BYTES: Final = 1 << 20


class UnfitReplay(ValueError):
    """A replay set of which no requests can be made; the message has the reason."""


def read_requests(stream: BinaryIO, size_bytes: int, signature: Signature, *, rows: int) -> tuple[str, ...]:
    """Return at most MOST_BODIES different requests of `rows` rows, together at most LARGEST_BODIES long.

    Only their rows are read. A set of fewer rows gives one request. Raises UnfitReplay.
    """
    names = {spec.name for spec in signature.inputs}
    try:
        tensors = _read_rows(stream, size_bytes, names, most=rows * MOST_BODIES)
    except MalformedTensors as error:
        msg = f"the replay set is no safetensors file: {error}"
        raise UnfitReplay(msg) from error
    if missing := sorted(names - tensors.keys()):
        msg = f"the replay set lacks the inputs {', '.join(missing)}"
        raise UnfitReplay(msg)
    count = min(len(data) for _, data in tensors.values())
    starts = range(0, max(count - rows, 0) + 1, rows) if count else ()
    bodies = [_body(tensors, slice(start, start + rows)) for start in starts]
    return _first_fitting(bodies, rows)


def _first_fitting(bodies: Sequence[str], rows: int) -> tuple[str, ...]:
    fitting, room = [], LARGEST_BODIES
    for body in bodies:
        room -= len(body)
        if room < 0:
            break
        fitting.append(body)
    if not fitting:
        sizes = f"a request of {rows} rows has {len(bodies[0])} bytes" if bodies else "the replay set has no rows"
        msg = f"{sizes}; allowed: {LARGEST_BODIES}" if bodies else sizes
        raise UnfitReplay(msg)
    return tuple(fitting)


def _read_rows(stream: BinaryIO, size_bytes: int, names: set[str], *, most: int) -> dict[str, tuple[str, Any]]:
    """Map each input to its V2 datatype and its first `most` rows. Raises MalformedTensors, UnfitReplay."""
    places, _ = read_places(stream, size_bytes)
    found: dict[str, tuple[str, Any]] = {}
    position = 0
    for name, place in places.items():
        if name not in names:
            continue
        if place.dtype not in _TYPES or not place.shape:
            msg = (
                f"input {name!r} of the replay set is {place.dtype} {list(place.shape)}, which JSON requests can't have"
            )
            raise UnfitReplay(msg)
        if fault := size_fault(name, place):
            raise MalformedTensors(fault)
        _skip(stream, place.begin - position)
        count = min(place.shape[0], most)
        size = (place.end - place.begin) // max(place.shape[0], 1) * count
        if size > LARGEST_BODIES * MOST_BODIES:
            msg = f"{count} rows of input {name!r} have {size} bytes; allowed: {LARGEST_BODIES * MOST_BODIES}"
            raise UnfitReplay(msg)
        kind, datatype = _TYPES[place.dtype]
        found[name] = datatype, np.frombuffer(exactly(stream, size), dtype=kind).reshape(count, *place.shape[1:])
        position = place.begin + size
    return found


def _skip(stream: BinaryIO, count: int) -> None:
    while count:
        count -= len(exactly(stream, min(count, _SKIPPED_BYTES)))


def _body(tensors: Mapping[str, tuple[str, Any]], rows: slice) -> str:
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(data[rows].shape), "data": data[rows].ravel().tolist()}
        for name, (datatype, data) in tensors.items()
    ]
    try:
        return json.dumps({"inputs": inputs}, allow_nan=False)
    except ValueError as error:
        msg = "the replay set holds NaN or infinity, which JSON requests can't have"
        raise UnfitReplay(msg) from error
