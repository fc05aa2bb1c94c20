"""Headers of safetensors files: their tensors with form and position. No weights are read, no library is needed.

As the format asks, each byte of the data belongs to one tensor: nothing else, such as an archive, is behind or between.

The format: eight bytes with the header's length (little-endian), a JSON header that gives each tensor's dtype, shape
and position, then the tensors' bytes.
"""

import math
import re
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final, NamedTuple

from ipnext.artifacts.bounded_json import TooManyValues, load_bounded

LARGEST_HEADER_BYTES: Final = 8 << 20
"""Some 60,000 tensors in one file. Parsed, a header takes up to thirty times as much memory as its text."""
MOST_SEPARATORS: Final = 500_000
"""Of one header; 60,000 tensors of two dimensions have 480,000."""
MOST_HEADER_BYTES: Final = 64 << 20
"""Of all headers of a snapshot together; those of 250,000 tensors have some 35 MB."""

ITEM_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Safetensors dtype -> bytes of one number. For other dtypes the size is not checked."""


_DTYPE: Final = re.compile(r"[A-Z][A-Z0-9_]{1,15}")
MOST_DIMENSIONS: Final = 64
LARGEST_NUMBER: Final = 2**63 - 1
"""Of sizes and offsets: products of longer ones take minutes."""


class MalformedTensors(ValueError):
    """A file whose content does not match its suffix."""


class HeaderSum:
    """The bytes of a snapshot's headers that were read so far."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, header_bytes: int) -> None:
        """Count one more header. Raises MalformedTensors if together they exceed MOST_HEADER_BYTES."""
        self._bytes += header_bytes
        if self._bytes > MOST_HEADER_BYTES:
            msg = (
                f"its header and those of the files before it have {self._bytes} bytes together; "
                f"allowed: {MOST_HEADER_BYTES}"
            )
            raise MalformedTensors(msg)


class TensorPlace(NamedTuple):
    """Position of a tensor, in bytes from the start of the data, and its form."""

    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]


Parse = Callable[[int, Callable[[], dict[str, TensorPlace]]], dict[str, TensorPlace]]
"""Runs a function that makes objects of so many bytes, and returns its result."""


def read_places(
    stream: BinaryIO, size_bytes: int, *, parse: Parse = lambda _, read: read(), headers: HeaderSum | None = None
) -> tuple[dict[str, TensorPlace], int]:
    """Return the position of each tensor, in order, and the start of the data, to which the stream is advanced.

    `headers` has the headers of the snapshot's other files. Raises MalformedTensors.
    """
    content = _header(stream, size_bytes)
    if headers is not None:
        headers.add(len(content))
    start = 8 + len(content)
    return parse(len(content), lambda: _tensors(_parse_header(content), size_bytes - start)), start


def exactly(stream: BinaryIO, count: int) -> bytes:
    """Read exactly `count` bytes: a stream of an object store may return fewer at a time. Raises MalformedTensors."""
    pieces, left = [], count
    while left:
        piece = stream.read(left)
        if not piece:
            msg = "it ends too soon"
            raise MalformedTensors(msg)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def size_fault(name: str, place: TensorPlace) -> str:
    """Return why a tensor's bytes do not match its dtype and shape; empty if they do."""
    item = ITEM_BYTES.get(place.dtype)
    if item is None or place.end - place.begin == item * math.prod(place.shape):
        return ""
    return f"tensor {name!r} of {place.dtype} {list(place.shape)} has {place.end - place.begin} bytes"


def _header(stream: BinaryIO, size_bytes: int) -> bytes:
    (length,) = struct.unpack("<Q", exactly(stream, 8))
    most = min(LARGEST_HEADER_BYTES, size_bytes)
    if length > most:
        msg = f"its header claims {length} bytes; allowed: {most}"
        raise MalformedTensors(msg)
    return exactly(stream, length)


def _parse_header(content: bytes) -> Mapping[str, Any]:
    try:
        header = load_bounded(content, most_separators=MOST_SEPARATORS)
    except TooManyValues as error:
        msg = f"its header has {error}"
        raise MalformedTensors(msg) from error
    except (ValueError, RecursionError) as error:
        msg = "its header is not JSON"
        raise MalformedTensors(msg) from error
    if not isinstance(header, dict):
        msg = "its header is not an object"
        raise MalformedTensors(msg)
    return header


def _tensors(header: Mapping[str, Any], data_bytes: int) -> dict[str, TensorPlace]:
    """Return the tensors by position; they must cover the data without gaps, and not overlap or leave the file."""
    _check_metadata(header.get("__metadata__", {}))
    found = {name: _place(name, entry) for name, entry in header.items() if name != "__metadata__"}
    by_place = sorted(found.items(), key=lambda item: (*item[1][:2], item[0]))
    last = 0
    for name, place in by_place:
        if place.begin < last or place.end < place.begin or place.end > data_bytes:
            msg = f"tensor {name!r} lies outside the file or over another one"
            raise MalformedTensors(msg)
        if place.begin > last:
            msg = f"{place.begin - last} bytes before tensor {name!r} belong to no tensor"
            raise MalformedTensors(msg)
        last = place.end
    if last < data_bytes:
        msg = f"{data_bytes - last} bytes behind the last tensor belong to no tensor"
        raise MalformedTensors(msg)
    return dict(by_place)


def _check_metadata(found: Any) -> None:
    texts = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if not texts:
        msg = "its __metadata__ is no object of texts"
        raise MalformedTensors(msg)


def _place(name: str, entry: Any) -> TensorPlace:
    try:
        begin, end = map(_whole, entry["data_offsets"])
        return TensorPlace(begin, end, sys.intern(_dtype(entry["dtype"])), _shape(entry["shape"]))
    except (KeyError, TypeError, ValueError) as error:
        msg = (
            f"tensor {name!r} has no dtype, shape and offsets: whole numbers below 2^63, "
            f"at most {MOST_DIMENSIONS} dimensions"
        )
        raise MalformedTensors(msg) from error


def _dtype(name: Any) -> str:
    if not isinstance(name, str) or _DTYPE.fullmatch(name) is None:
        msg = "no name of a dtype"
        raise ValueError(msg)
    return name


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number <= LARGEST_NUMBER:
        msg = "no whole number in range"
        raise ValueError(msg)
    return number


def _shape(sizes: Any) -> tuple[int, ...]:
    if len(sizes) > MOST_DIMENSIONS:
        msg = "too many dimensions"
        raise ValueError(msg)
    return tuple(map(_whole, sizes))
