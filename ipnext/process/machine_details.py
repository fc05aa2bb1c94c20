"""Removes details of a machine from texts: absolute paths, process ids, ports of loopback addresses, credentials.

Errors, events and logs contain all of these. Users who do not operate the platform see them without.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

CUT: Final = "…"
# No repetition without a bound may begin within a run of what it repeats: texts come from anybody, and are megabytes
# long.
_LETTERS: Final = r"[\w.@+=%,~-]"
_URI: Final = re.compile(rf"(?<![\w+])(file|unix|sqlite[\w+]{{0,20}}):/{{1,4}}(?:{_LETTERS}+/+)*({_LETTERS}+)")
_DATABASE: Final = re.compile(r"(?<![\w+])(postgresql[\w+]{0,20})://\S+")
_OURS: Final = "v1|v2|web|docs|metrics|healthz|readyz|openapi.json|control|frames|parts"
"""First steps of the platform's own paths, which are no files."""
_PATH: Final = re.compile(
    rf"(?:(?<![\w./~{CUT}-])/|(?<![\w./~{CUT}:-])//+)(?!(?:{_OURS})\b)(?:{_LETTERS}+/+)+({_LETTERS}*)"
)
_QUOTED: Final = re.compile(
    r"(?<![\w/])(?P<quote>['\"`])(?P<scheme>(?:file|unix|sqlite[\w+]{0,20}):(?=/))?/++"
    r"(?P<steps>(?:(?!(?P=quote))[^\n]){1,4096})(?P=quote)"
)
_OWN: Final = re.compile(rf"(?:{_OURS})\b")
_CREDENTIALS: Final = re.compile(
    r"(?<=://)(?:[^\s/'\"`<>]+@|[^\s/@:'\"`<>]{1,128}:(?!\d{0,5}(?:[/?#]|$))[^\s@'\"`<>]{1,128}@)"
)
"""User and password of an address. The second form has a password with a slash; a port is none."""
_HOME: Final = str(Path("~").expanduser())
_PROCESS: Final = re.compile(r"\b(pids?|process(?: id)?)(\W{1,4})(\d+)\b", re.IGNORECASE)
_PORT: Final = re.compile(r"((?:\b127(?:\.\d{1,3}){3}|\blocalhost|\[::1\]):)\d+")
_HINTS: Final = re.compile(r"/|pid|process|localhost:|127\.|::1", re.IGNORECASE)

_DECLARED: Final = frozenset(
    {"manifest", "spec", "settings", "graph", "signature", "labels", "annotations", "before", "after"}
)
"""Fields that users wrote: they are shown unchanged."""
_GIVEN_BACK: Final = frozenset({"gateway_url", "run_url", "temporal_ui_url", "issuer", "audience", "next"})
"""Addresses for clients, and values that clients send back."""
_PROCESS_IDS: Final = frozenset({"pid"})


def shorten_text(text: str) -> str:
    """Return the text with the last step of each path, without process ids, loopback ports and database addresses.

    Addresses lose their user and password. A path with blanks is found between quotes only.
    """
    if _HINTS.search(text) is None:
        return text
    text = _QUOTED.sub(_shorten_quoted, text)
    text = _CREDENTIALS.sub(f"{CUT}@", text)
    text = _DATABASE.sub(rf"\1://{CUT}", text)
    text = _URI.sub(rf"\1://{CUT}/\2", text)
    text = cut_home(text, _HOME)
    text = _PATH.sub(rf"{CUT}/\1", text)
    text = _PROCESS.sub(rf"\1\2{CUT}", text)
    return _PORT.sub(rf"\g<1>{CUT}", text)


def _shorten_quoted(found: re.Match[str]) -> str:
    """Return a quoted path with blanks by its last step; other texts, which the further patterns judge, unchanged."""
    scheme, steps, quote = found["scheme"], found["steps"], found["quote"]
    if len(steps.split()) < 2 or (scheme is None and ("/" not in steps or _OWN.match(steps))):
        return found[0]
    return f"{quote}{scheme + '//' if scheme else ''}{CUT}/{steps.rpartition('/')[2]}{quote}"


def cut_home(text: str, home: str) -> str:
    """Return the text without this directory, whose last step is the name of a user; paths below it stay."""
    if len(home) < 2:
        return text
    return re.sub(rf"(?<![\w./~-])/*{re.escape(home)}/*(?!/|{_LETTERS}*[\w@+=%~-])", CUT, text)


def shorten(value: Any, name: str = "") -> Any:
    """Return JSON of the same form without these details; `name` is the member with this value.

    Declared fields stay.
    """
    if isinstance(value, str):
        return value if name in _GIVEN_BACK else shorten_text(value)
    if isinstance(value, list):
        return [shorten(each, name) for each in value]
    if isinstance(value, dict):
        shown = _distinct(value)
        return {
            shown[key]: each if key in _DECLARED else None if key in _PROCESS_IDS else shorten(each, key)
            for key, each in value.items()
        }
    return value


def _distinct(names: Iterable[str]) -> Mapping[str, str]:
    """Map the names of members to shortened ones; those that become alike have numbers."""
    shown: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in names:
        short = shorten_text(name)
        counts[short] += 1
        shown[name] = short if counts[short] == 1 else f"{short} ({counts[short]})"
    return shown
