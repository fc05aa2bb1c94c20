"""A server that allows only short histories: it terminates a run whose history is longer.

The server of `ipnext dev` starts with the limit that stands in the file `state/history-limit`, if there is one.
"""

from collections.abc import Sequence
from pathlib import Path

EVENTS = 150
"""Of a history, at most: some rollouts with a hold or an approval have more, and entities after some changes."""

_SETTING = "limit.historyCount.error"


def set_limit(state: Path, events: int | None) -> None:
    """Let the server allow so many events of a run the next time it starts; None: as many as usual."""
    if events is None:
        _mark(state).unlink(missing_ok=True)
    else:
        _mark(state).write_text(str(events))


def with_limit(state: Path, name: str, command: Sequence[str]) -> Sequence[str]:
    """The command of a child, with the limit if it is the server."""
    if name != "temporal" or not _mark(state).exists():
        return command
    return [*command, "--dynamic-config-value", f"{_SETTING}={int(_mark(state).read_text())}"]


def _mark(state: Path) -> Path:
    return state / "history-limit"
