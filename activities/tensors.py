"""Validator of weights: every number in every safetensors file is finite. Read as a stream, a few megabytes at a time.

The format: eight bytes with the header's length (little-endian), a JSON header that gives each tensor's dtype, shape and
place, then the tensors' bytes. torch is not needed: BF16 and the 8-bit floats are judged by their bits.
"""

import json
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from activities.candidate import CHUNK_BYTES, Candidate, failed, passed
from ipnext.model.lifecycle import CheckResult
from ipnext.model.status import Reason

FINITE = "finite-weights"

LARGEST_HEADER_BYTES = 100 << 20

Finite = Callable[[bytes], bool]


class MalformedTensors(ValueError):
    """A file that is not what its suffix says."""


class TensorPlace(NamedTuple):
    """Where a tensor lies, in bytes from the start of the data, and its form."""

    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]


def check_finite(candidate: Candidate) -> Iterator[CheckResult]:
    """One result for each safetensors file; a refusal names part and tensor."""
    for part, snapshot in sorted(candidate.snapshots.items()):
        for file in snapshot.manifest.files:
            if not file.path.endswith(".safetensors"):
                continue
            subject = f"{part}/{file.path}"
            with candidate.open(file.sha256) as stream:
                yield _judged(stream, file.size_bytes, subject, candidate.beat)


def non_finite_tensor(stream: BinaryIO, size_bytes: int, beat: Callable[[str], None]) -> str | None:
    """Name of the first tensor that holds NaN or infinity, none where all are finite. Raises MalformedTensors."""
    places, start = read_places(stream, size_bytes)
    position = start
    for name, (begin, end, dtype, _) in places.items():
        position = _skip(stream, start + begin - position, position)
        check = _FINITE.get(dtype)
        left = end - begin
        while left:
            chunk = _exactly(stream, min(left, CHUNK_BYTES))
            left -= len(chunk)
            position += len(chunk)
            beat(f"checking tensor {name}")
            if check is not None and not check(chunk):
                return name
    return None


def read_places(stream: BinaryIO, size_bytes: int) -> tuple[dict[str, TensorPlace], int]:
    """Where each tensor lies, by place, and where the data begins; the stream stands there. Raises MalformedTensors."""
    header, start = _header(stream, size_bytes)
    return _tensors(header, size_bytes - start), start


def tensors_of(
    stream: BinaryIO, places: Mapping[str, TensorPlace], start: int, wanted: Collection[str]
) -> Iterator[tuple[str, bytes]]:
    """The content of some tensors, read on from where `read_places` has left the stream."""
    position = start
    for name, place in places.items():
        if name in wanted:
            _skip(stream, start + place.begin - position, position)
            yield name, _exactly(stream, place.end - place.begin)
            position = start + place.end


def _judged(stream: BinaryIO, size_bytes: int, subject: str, beat: Callable[[str], None]) -> CheckResult:
    try:
        name = non_finite_tensor(stream, size_bytes, beat)
    except MalformedTensors as error:
        return failed(FINITE, subject, Reason.UNSAFE_FORMAT, f"is no safetensors file: {error}")
    if name is None:
        return passed(FINITE, subject)
    part = subject.partition("/")[0]
    message = f"tensor {name!r} of part {part!r} holds NaN or infinity; train or export it again"
    return failed(FINITE, subject, Reason.NON_FINITE_WEIGHTS, message)


def _header(stream: BinaryIO, size_bytes: int) -> tuple[Mapping[str, Any], int]:
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    if length > min(LARGEST_HEADER_BYTES, size_bytes):
        msg = f"its header claims {length} bytes"
        raise MalformedTensors(msg)
    try:
        header = json.loads(_exactly(stream, length))
    except (ValueError, RecursionError) as error:
        msg = "its header is not JSON"
        raise MalformedTensors(msg) from error
    if not isinstance(header, dict):
        msg = "its header is not an object"
        raise MalformedTensors(msg)
    return header, 8 + length


def _tensors(header: Mapping[str, Any], data_bytes: int) -> dict[str, TensorPlace]:
    """By place; places must not overlap nor leave the file."""
    found = {name: _place(name, entry) for name, entry in header.items() if name != "__metadata__"}
    by_place = sorted(found.items(), key=lambda item: (*item[1][:2], item[0]))
    last = 0
    for name, place in by_place:
        if place.begin < last or place.end < place.begin or place.end > data_bytes:
            msg = f"tensor {name!r} lies outside the file or over another one"
            raise MalformedTensors(msg)
        last = place.end
    return dict(by_place)


def _place(name: str, entry: Any) -> TensorPlace:
    try:
        begin, end = (int(offset) for offset in entry["data_offsets"])
        return TensorPlace(begin, end, str(entry["dtype"]), tuple(int(size) for size in entry["shape"]))
    except (KeyError, TypeError, ValueError) as error:
        msg = f"tensor {name!r} has no dtype, shape and offsets"
        raise MalformedTensors(msg) from error


def _skip(stream: BinaryIO, count: int, position: int) -> int:
    while count:
        chunk = _exactly(stream, min(count, CHUNK_BYTES))
        count -= len(chunk)
        position += len(chunk)
    return position


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """Streams of object stores give what has come so far: read on until it is all there."""
    pieces, left = [], count
    while left:
        piece = stream.read(left)
        if not piece:
            msg = "it ends too soon"
            raise MalformedTensors(msg)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _by_numpy(dtype: str) -> Finite:
    return lambda chunk: bool(np.isfinite(np.frombuffer(chunk, dtype=dtype)).all())


def _by_bits(dtype: str, exponent: int) -> Finite:
    """Not finite where all bits of the exponent are set."""
    return lambda chunk: not bool(((np.frombuffer(chunk, dtype=dtype) & exponent) == exponent).any())


def _e4m3(chunk: bytes) -> bool:
    """The OCP 8-bit float of 4 and 3 bits has no infinity; S.1111.111 is NaN."""
    return not bool(((np.frombuffer(chunk, dtype="u1") & 0x7F) == 0x7F).any())


_FINITE: Mapping[str, Finite] = {
    "F64": _by_numpy("<f8"),
    "F32": _by_numpy("<f4"),
    "F16": _by_numpy("<f2"),
    "C64": _by_numpy("<c8"),
    "BF16": _by_bits("<u2", 0x7F80),
    "F8_E5M2": _by_bits("u1", 0x7C),
    "F8_E4M3": _e4m3,
}
"""Safetensors dtype -> whether a chunk is finite. Integers and booleans always are. CHUNK_BYTES is a multiple of all sizes."""
