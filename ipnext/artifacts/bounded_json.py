"""Reads JSON of unknown origin into objects, within bounds: an array of empty arrays takes thirty times its text in memory.

Every reader of a document of a snapshot uses it. Objects are counted by the signs that separate them, before any is made.
"""

import json
from typing import Any, Final

MOST_SEPARATORS: Final = 8_000_000
"""Commas and opening brackets of one document. A tokenizer of 250,000 words and 500,000 merges has two million."""


class TooManyValues(ValueError):
    """A document that would become more objects than a reader allows."""


def load_bounded(content: bytes, *, most_separators: int | None = None) -> Any:
    """The value of a document. `most_separators`: None: MOST_SEPARATORS.

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
