"""Predictions in JSON, made of the first rows of a snapshot's replay set."""

import json
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, BinaryIO, Final

import numpy as np

from ipnext.artifacts.checkpoints.tensor_headers import MalformedTensors, TensorPlace, exactly, read_places, size_fault
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
_LEAST_BYTES: Final = 3
"""Of an element in JSON: a digit, a comma and a space."""


class UnfitReplay(ValueError):
    """A replay set of which no requests can be made; the message has the reason."""


def read_requests(stream: BinaryIO, size_bytes: int, signature: Signature, *, rows: int) -> tuple[str, ...]:
    """Return at most MOST_BODIES different requests of `rows` rows, together at most LARGEST_BODIES long.

    Only their rows are read, and no more of them than may fit: the set is a publisher's. A set of fewer rows gives one
    request. Raises UnfitReplay.
    """
    names = {spec.name for spec in signature.inputs}
    try:
        places, _ = read_places(stream, size_bytes)
        own = _check_inputs({name: place for name, place in places.items() if name in names}, names)
        tensors = _read_rows(stream, own, most=rows * _count_fitting(own, rows))
    except MalformedTensors as error:
        msg = f"the replay set is no safetensors file: {error}"
        raise UnfitReplay(msg) from error
    count = min(len(data) for _, data in tensors.values())
    starts = range(0, max(count - rows, 0) + 1, rows)
    return _first_fitting((_body(tensors, slice(start, start + rows)) for start in starts), rows)


def _check_inputs(places: Mapping[str, TensorPlace], names: set[str]) -> Mapping[str, TensorPlace]:
    """Return the inputs' tensors. Raises UnfitReplay, MalformedTensors."""
    if not names:
        msg = "the snapshot has no inputs"
        raise UnfitReplay(msg)
    if missing := sorted(names - places.keys()):
        msg = f"the replay set lacks the inputs {', '.join(missing)}"
        raise UnfitReplay(msg)
    for name, place in places.items():
        if place.dtype not in _TYPES or not place.shape:
            msg = (
                f"input {name!r} of the replay set is {place.dtype} {list(place.shape)}, which JSON requests can't have"
            )
            raise UnfitReplay(msg)
        if fault := size_fault(name, place):
            raise MalformedTensors(fault)
        if not place.shape[0]:
            msg = "the replay set has no rows"
            raise UnfitReplay(msg)
        if not all(place.shape):
            msg = f"input {name!r} of the replay set has no values in a row: {list(place.shape)}"
            raise UnfitReplay(msg)
    return places


def _count_fitting(places: Mapping[str, TensorPlace], rows: int) -> int:
    """Return the most requests that may fit, by the least bytes that one has. Raises UnfitReplay if none does."""
    least = _LEAST_BYTES * sum(min(rows, place.shape[0]) * prod(place.shape[1:]) for place in places.values())
    if least > LARGEST_BODIES:
        msg = f"a request of {rows} rows has at least {least} bytes; allowed: {LARGEST_BODIES}"
        raise UnfitReplay(msg)
    return min(MOST_BODIES, LARGEST_BODIES // max(least, 1))


def _first_fitting(bodies: Iterable[str], rows: int) -> tuple[str, ...]:
    fitting: list[str] = []
    room = LARGEST_BODIES
    for body in bodies:
        room -= len(body)
        if room < 0 and not fitting:
            msg = f"a request of {rows} rows has {len(body)} bytes; allowed: {LARGEST_BODIES}"
            raise UnfitReplay(msg)
        if room < 0:
            break
        fitting.append(body)
    return tuple(fitting)


def _read_rows(stream: BinaryIO, places: Mapping[str, TensorPlace], *, most: int) -> dict[str, tuple[str, Any]]:
    """Map each input to its V2 datatype and its first `most` rows. Raises MalformedTensors."""
    found: dict[str, tuple[str, Any]] = {}
    position = 0
    for name, place in places.items():
        _skip(stream, place.begin - position)
        count = min(place.shape[0], most)
        size = (place.end - place.begin) // place.shape[0] * count
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
