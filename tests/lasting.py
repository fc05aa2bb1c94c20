"""What several test files use, one after the other, such as a whole platform.

It is begun once and ends with the last of them.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any


class Lasting:
    """By name; each is the value of a context that stays open."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._contexts = ExitStack()

    def get(self, name: str, begin: Callable[[], AbstractContextManager[Any]]) -> Any:
        """What the first file that asked by this name began."""
        if name not in self._values:
            self._values[name] = self._contexts.enter_context(begin())
        return self._values[name]

    def close(self) -> None:
        """End all of them; whoever asks next begins anew."""
        self._values.clear()
        self._contexts.close()
