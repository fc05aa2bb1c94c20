"""Texts of others on a terminal, which obeys control characters instead of showing them."""

import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it, but for tabs and ends of lines: texts come from those who publish."""


def escape_controls(text: str) -> str:
    """Return the text with control characters written out, except tabs and ends of lines."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def has_controls(text: str) -> bool:
    """Return whether a text has control characters, tabs and ends of lines left aside."""
    return _CONTROLS.search(text) is not None


def escape_quoted(text: str) -> str:
    """Return JSON, or YAML; control characters of strings are escapes of four digits, in double quotes."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
