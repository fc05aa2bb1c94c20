"""Memory estimate of a JSON text, computed before it is parsed. Pure; used by host and router."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

import numpy as np

from ipnext.errors import TooLarge

MAX_STRUCTURES: Final = 2**18
"""Most objects and lists of one text: parsing this many, without other values, takes some 40 ms and 60 MiB."""
SMALL_BYTES: Final = 2**14
"""Texts up to this size are not examined."""
MAX_ELEMENTS: Final = 2**20
"""Most commas of one OpenAI body: a prompt of a million tokens by their numbers takes some 30 ms to parse."""
MAX_MEMBERS: Final = 2**17
"""Most colons of one OpenAI body: so many members of objects take some 100 ms."""
_PIECE_BYTES: Final = 2**20
_BYTES_OF: Final = {b"[": 64, b"{": 72, b",": 84, b":": 130}
"""Memory added per character: a list, an object, an element (a number or short text with its slot), an entry of an
object. Measured with CPython 3.11; whole numbers up to 256 take less."""
_FEW_QUOTES: Final = 2**14
"""Quotes in a piece up to which splitting it is faster than an array."""
_SEPARATORS: Final = (",", "[", "{")
"""Characters before the values of a JSON text, but the outermost one."""
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
        msg = (
            f"the body has {structures} objects and lists of JSON, at most {MAX_STRUCTURES} are taken; "
            "send flat lists, or tensors as binary data"
        )
        raise TooLarge(msg, field="body", value=structures)
    return _HEAD + len(text) * _width(text) + sum(counts[character] * size for character, size in _BYTES_OF.items())


def check_elements(text: bytes | bytearray) -> None:
    """Raise TooLarge if a JSON text has more than MAX_ELEMENTS commas or MAX_MEMBERS colons outside its strings.

    A text that is no JSON may pass if its values before the first fault are no more than that.
    """
    for character, most, values in ((b",", MAX_ELEMENTS, "elements"), (b":", MAX_MEMBERS, "members of objects")):
        if _count(character, text) > most and _is_above(most, character, text):
            msg = (
                f"the body has more than {most} {values} of JSON (by its {character.decode()!r} outside "
                "strings); send less at once"
            )
            raise TooLarge(msg, field="body", value=most)


def _count(character: bytes, text: bytes | bytearray) -> int:
    """Return how often a character is in a text, in a time that doesn't depend on it."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord(character)))


def most_values(text: str) -> int:
    """Return an upper bound of the members and entries at all levels of a JSON text: its separators outside strings."""
    if len(text) <= SMALL_BYTES:
        outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
        return sum(map(outside.count, _SEPARATORS))
    content = text.encode(errors="replace")
    return sum(sum(_counts_outside(separator.encode(), content)) for separator in _SEPARATORS)


def _is_above(most: int, character: bytes, text: bytes | bytearray) -> bool:
    """Return whether the text has more than `most` of a character outside its strings."""
    return any(count > most for count in accumulate(_counts_outside(character, text)))


def _counts_outside(character: bytes, text: bytes | bytearray) -> Iterator[int]:
    """Yield how often a character is outside the strings of each piece of a text."""
    inside, begun = 0, b""
    view = memoryview(text)
    for start in range(0, len(text), _PIECE_BYTES):
        piece = (begun + bytes(view[start : start + _PIECE_BYTES])).replace(b"\\\\", b"")
        begun = b"\\" if piece.endswith(b"\\") else b""  # what it escapes begins the next piece
        piece = piece.removesuffix(begun).replace(b'\\"', b"")
        yield _count_outside(character, piece, inside)
        inside = (inside + piece.count(b'"')) & 1


def _count_outside(character: bytes, piece: bytes, inside: int) -> int:
    """Return how often a character is outside strings.

    The piece has no escapes; `inside` is 1 if it begins in a string.
    """
    if piece.count(b'"') < _FEW_QUOTES:
        return _count(character, b"".join(piece.split(b'"')[inside::2]))
    data = np.frombuffer(piece, np.uint8)
    quotes = np.cumsum(data == ord('"'), dtype=np.uint8)  # modulo 256: only whether it is odd counts
    return int(np.count_nonzero((data == ord(character)) & ((quotes + inside) & 1 == 0)))


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
