"""Memory estimate of a JSON text, computed before it is parsed. Pure; used by host and router."""

from typing import Final

import numpy as np

from ipnext.errors import TooLarge

MAX_STRUCTURES: Final = 2**18
"""Most objects and lists of one text: parsing this many, without other values, takes some 40 ms and 60 MiB."""
SMALL_BYTES: Final = 2**14
"""Texts up to this size are not examined."""
_PIECE_BYTES: Final = 2**20
_BYTES_OF: Final = {b"[": 64, b"{": 72, b",": 84, b":": 130}
"""Memory added per character: a list, an object, an element (a number or short text with its slot), an entry of an
object. Measured with CPython 3.11; whole numbers up to 256 take less."""
_HEAD: Final = 256
"""Memory of the outermost value."""
_TWO_BYTES: Final = 0x80
_FOUR_BYTES: Final = 0xF0
"""Lowest first bytes of characters with which every character of their text takes two, or four, bytes."""


def parsed_bytes(text: bytes | bytearray | memoryview) -> int:
    """Return an upper estimate of the memory of a JSON text's values; 0 for a short text.

    Raises:
        TooLarge: the text has more than MAX_STRUCTURES objects and lists. Brackets within its strings count too.
    """
    if len(text) <= SMALL_BYTES:
        return 0
    counts = _count_characters(text)
    structures = counts[b"["] + counts[b"{"]
    if structures > MAX_STRUCTURES:
        msg = f"the body has {structures} objects and lists of JSON, at most {MAX_STRUCTURES} are taken; send flat lists, or tensors as binary data"
        raise TooLarge(msg, field="body", value=structures)
    return _HEAD + len(text) * _width(text) + sum(counts[character] * size for character, size in _BYTES_OF.items())


def _width(text: bytes | bytearray | memoryview) -> int:
    """Return the most bytes that a character of the text takes in memory."""
    highest = int(np.frombuffer(text, np.uint8).max())
    if highest < _TWO_BYTES:
        return 1
    return 4 if highest >= _FOUR_BYTES else 2


def _count_characters(text: bytes | bytearray | memoryview) -> dict[bytes, int]:
    data = np.frombuffer(text, np.uint8)
    counts = dict.fromkeys(_BYTES_OF, 0)
    for start in range(0, data.size, _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        for character in _BYTES_OF:
            counts[character] += int(np.count_nonzero(piece == ord(character)))
    return counts
