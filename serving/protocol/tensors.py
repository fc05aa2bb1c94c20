"""Tensors of the Open Inference Protocol V2 as numpy arrays, and their JSON and binary forms.

BF16 is stored as its bits in uint16 and BYTES as an object array of bytes, because numpy has neither. All functions are
pure; bad data raises InvalidInput, which names the tensor.
"""

import itertools
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt

from ipnext.errors import InvalidInput
from ipnext.model.echoes import show_value
from ipnext.model.registry.registry import Datatype

Array = npt.NDArray[Any]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype("u1"),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype("i1"),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "BF16": np.dtype("<u2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
        "BYTES": np.dtype(np.object_),
    }
)
"""The numpy type of each datatype."""

FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
_MAX_RANK: Final = 32
_MAX_DIMENSION: Final = 2**31 - 1
_MAX_ELEMENTS: Final = 2**48
"""Limit on the product of an empty tensor's sizes other than 0: numpy counts bytes like this, for any datatype, in 63
bits."""
_LENGTH: Final = struct.Struct("<I")
_BYTES_OBJECT: Final = 41
"""Memory of an empty element of a BYTES tensor: the object and its slot in the array."""
MAX_BYTES_ELEMENTS: Final = 2**18
"""Most elements of a BYTES tensor: they are read one by one, a fifth of a second for this many."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A datatype and its array; the array's type is `DTYPES[datatype]`."""

    datatype: Datatype
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return self.data.shape


def decoded_bytes(tensors: Iterable[Tensor], *, beside: bytes | bytearray | memoryview) -> int:
    """Return the memory of tensors outside the body `beside` from which they were read."""
    shared = np.frombuffer(beside, np.uint8)
    return sum(_own_bytes(tensor) for tensor in tensors if not np.may_share_memory(tensor.data, shared))


def _own_bytes(tensor: Tensor) -> int:
    if tensor.datatype != "BYTES":
        return tensor.data.nbytes
    return sum(_BYTES_OBJECT + len(element) for element in tensor.data.flat)


def bf16_to_float32(bits: Array) -> Array:
    """Convert BF16 bits (uint16) to float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: Array) -> Array:
    """Convert float32 values to BF16 bits (uint16), rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; always true for datatypes without them."""
    if tensor.datatype not in FLOATS:
        return True
    data = bf16_to_float32(tensor.data) if tensor.datatype == "BF16" else tensor.data
    if data.size == 1:
        return math.isfinite(data.item())
    return bool(np.logical_and.reduce(np.isfinite(data), axis=None))


def check_datatype(name: str, datatype: object) -> Datatype:
    """Return the datatype if it is known; else InvalidInput lists the known ones."""
    if isinstance(datatype, str) and datatype in DTYPES:
        return datatype  # type: ignore[return-value]  # DTYPES has the members of Datatype as its keys
    known = get_args(Datatype)
    msg = f"tensor {name!r}: datatype {datatype!r} is not one of {', '.join(known)}"
    raise InvalidInput(msg, field=f"{name}.datatype", value=datatype, allowed=known)


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return the shape as a tuple if it is a list of at most 32 whole numbers from 0 to 2^31-1; else InvalidInput."""
    if isinstance(shape, list) and len(shape) <= _MAX_RANK and all(_is_dimension(size) for size in shape):
        return tuple(shape)
    msg = (
        f"tensor {name!r}: shape {show_value(shape)} must be a list of at most {_MAX_RANK} whole numbers, "
        f"each from 0 to {_MAX_DIMENSION}"
    )
    raise InvalidInput(msg, field=f"{name}.shape", value=shape)


def _is_dimension(size: object) -> bool:
    return type(size) is int and 0 <= size <= _MAX_DIMENSION


def from_binary(name: str, datatype: Datatype, shape: tuple[int, ...], chunk: memoryview) -> Tensor:
    """Read a tensor from row-major little-endian bytes; it shares memory with `chunk` unless it is BYTES."""
    count = math.prod(shape)
    if datatype == "BYTES":
        return Tensor(datatype, _reshape(name, _bytes_elements(name, count, chunk), shape))
    dtype = DTYPES[datatype]
    if len(chunk) != count * dtype.itemsize:
        msg = (
            f"tensor {name!r}: {datatype} of shape {list(shape)} takes {count * dtype.itemsize} bytes, got {len(chunk)}"
        )
        raise InvalidInput(msg, field=name, value=len(chunk))
    data: Array = np.frombuffer(chunk, dtype)
    if datatype == "BOOL" and count and int(data.view(np.uint8).max()) > 1:
        msg = f"tensor {name!r}: a BOOL byte must be 0 or 1"
        raise InvalidInput(msg, field=name)
    return Tensor(datatype, _reshape(name, data, shape))


def _bytes_elements(name: str, count: int, chunk: memoryview) -> Array:
    if count > MAX_BYTES_ELEMENTS:
        msg = f"tensor {name!r}: BYTES data has at most {MAX_BYTES_ELEMENTS} elements, got {count}"
        raise InvalidInput(msg, field=name, value=count)
    elements: list[bytes] = []
    position = 0
    while len(elements) < count and (start := position + _LENGTH.size) <= len(chunk):
        position = start + _LENGTH.unpack_from(chunk, position)[0]
        elements.append(bytes(chunk[start:position]))
    if position != len(chunk) or len(elements) != count:
        msg = f"tensor {name!r}: BYTES data must be {count} elements, each a 4-byte length and that many bytes"
        raise InvalidInput(msg, field=name, value=len(chunk))
    return _object_array(elements)


def to_binary(tensor: Tensor) -> bytes:
    """Return row-major little-endian bytes; each BYTES element follows its 4-byte length."""
    if tensor.datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(element)) + element for element in tensor.data.ravel())
    return tensor.data.astype(DTYPES[tensor.datatype], copy=False).tobytes()


def from_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: object) -> Tensor:
    """Read a tensor from a JSON list, flat or nested like its shape. Numbers must fit the datatype and be finite."""
    flat = _flatten(name, data, shape)
    count = math.prod(shape)
    if len(flat) != count:
        msg = f"tensor {name!r}: shape {list(shape)} holds {count} elements, got {len(flat)}"
        raise InvalidInput(msg, field=f"{name}.data", value=len(flat))
    _check_kinds(name, datatype, flat)
    return Tensor(datatype, _reshape(name, _convert(name, datatype, flat), shape))


def _flatten(name: str, data: object, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(data, list):
        msg = f"tensor {name!r}: data must be a list, got {show_value(data)}"
        raise InvalidInput(msg, field=f"{name}.data", value=data)
    flat: list[Any] = data
    sizes = [len(flat)]
    while flat and isinstance(flat[0], list):
        width = len(flat[0])
        if not all(isinstance(row, list) and len(row) == width for row in flat):
            msg = f"tensor {name!r}: nested data must have rows of one length at each level"
            raise InvalidInput(msg, field=f"{name}.data")
        flat = list(itertools.chain.from_iterable(flat))
        sizes.append(width)
    if len(sizes) > 1 and tuple(sizes) != shape[: len(sizes)]:
        msg = f"tensor {name!r}: data is nested as {sizes}, its shape says {list(shape)}"
        raise InvalidInput(msg, field=f"{name}.data", value=sizes)
    return flat


def _check_kinds(name: str, datatype: Datatype, flat: Sequence[Any]) -> None:
    allowed: dict[str, tuple[set[type], str]] = {
        "BOOL": ({bool}, "true or false"),
        "BYTES": ({str}, "strings"),
        **dict.fromkeys(FLOATS, ({int, float}, "numbers")),
    }
    kinds, words = allowed.get(datatype, ({int}, "whole numbers"))
    types = list(map(type, flat))
    if types and types.count(types[0]) == len(types):  # counting is faster than making a set
        types = types[:1]
    if not set(types) <= kinds:
        wrong = next(element for element in flat if type(element) not in kinds)
        msg = f"tensor {name!r}: {datatype} data must be {words}, got {show_value(wrong)}"
        raise InvalidInput(msg, field=f"{name}.data", value=wrong)


def _convert(name: str, datatype: Datatype, flat: list[Any]) -> Array:
    try:
        if datatype == "BYTES":
            return _object_array([element.encode() for element in flat])
        if datatype in FLOATS:
            return _convert_floats(name, datatype, flat)
        return np.array(flat, DTYPES[datatype])
    except (OverflowError, UnicodeEncodeError) as error:
        msg = f"tensor {name!r}: an element does not fit {datatype}: {error}"
        raise InvalidInput(msg, field=f"{name}.data") from error


def _convert_floats(name: str, datatype: Datatype, flat: list[Any]) -> Array:
    wide = np.array(flat, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        narrow = float32_to_bf16(wide.astype(np.float32)) if datatype == "BF16" else wide.astype(DTYPES[datatype])
    tensor = Tensor(datatype, narrow)
    if not all_finite(tensor):
        msg = (
            f"tensor {name!r}: an element is NaN or lies beyond the range of {datatype}; "
            "NaN and infinity go as binary data"
        )
        raise InvalidInput(msg, field=f"{name}.data")
    return narrow


def to_json(name: str, tensor: Tensor) -> list[Any]:
    """Return the elements, flat and row-major.

    InvalidInput for NaN, infinity and bytes that are not UTF-8, which JSON lacks.
    """
    if tensor.datatype == "BYTES":
        return _text_elements(name, tensor)
    if not all_finite(tensor):
        msg = f"tensor {name!r} holds NaN or infinity, which JSON cannot carry; ask for binary data"
        raise InvalidInput(msg, field=name)
    data = bf16_to_float32(tensor.data) if tensor.datatype == "BF16" else tensor.data
    return list(data.ravel().tolist())


def _text_elements(name: str, tensor: Tensor) -> list[str]:
    try:
        return [element.decode() for element in tensor.data.ravel()]
    except UnicodeDecodeError as error:
        msg = f"tensor {name!r} holds bytes that are not UTF-8, which JSON cannot carry; ask for binary data"
        raise InvalidInput(msg, field=name) from error


def _object_array(elements: list[bytes]) -> Array:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


def _reshape(name: str, data: Array, shape: tuple[int, ...]) -> Array:
    if not data.size and math.prod(size for size in shape if size) > _MAX_ELEMENTS:
        msg = f"tensor {name!r}: shape {list(shape)} is too large"
        raise InvalidInput(msg, field=f"{name}.shape")
    return data.reshape(shape)
