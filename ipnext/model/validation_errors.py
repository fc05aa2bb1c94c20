"""Errors of pydantic in the words of YAML, for a person who wrote a manifest and knows no Python."""

from collections.abc import Mapping
from typing import Final

from pydantic_core import ErrorDetails

_WORDS: Final[Mapping[str, str]] = {
    "Value error, ": "",
    "a valid tuple": "a list",
    "Tuple should have": "The list should have",
    " after validation": "",
    "a valid dictionary": "a mapping",
}


def fault_text(fault: ErrorDetails) -> str:
    """Return the message of a fault."""
    text = fault["msg"]
    for python, yaml in _WORDS.items():
        text = text.replace(python, yaml)
    return text
