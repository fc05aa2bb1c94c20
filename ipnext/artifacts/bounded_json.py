"""Reads JSON of unknown origin into objects, within limits.

An array of empty arrays takes thirty times its text in memory. Every reader of a snapshot's documents uses it. Objects
are counted by their separators, before any is made.
"""

import json
from typing import Any, Final

MOST_SEPARATORS: Final = 8_000_000
"""Most commas and opening brackets of one document. A tokenizer of 250,000 words and 500,000 merges has two million."""


class TooManyValues(ValueError):
    """A document that would become more objects than a reader allows."""


def load_bounded(content: bytes, *, most_separators: int | None = None) -> Any:
    """Return the value of a document. `most_separators` is MOST_SEPARATORS if it is None.

    Raises:
        TooManyValues: it would become too many objects.
        ValueError: it is not JSON.
        RecursionError: it is nested too deep.
    """
    found, most = sum(map(content.count, (b",", b"[", b"{"))), most_separators or MOST_SEPARATORS
    if found > most:
        msg = f"{found} commas and brackets; allowed: {most}"
        raise TooManyValues(msg)
    return json.loads(content)
