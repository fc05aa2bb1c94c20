"""Parses documents of snapshots: one large one at a time in a worker, without delaying a validation that ends.

A large document takes up to a gigabyte while it is parsed (docs/lifecycle.md), and seconds in which nothing in Python
can interrupt it. So a separate thread parses it, and the thread of the activity sends heartbeats meanwhile.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

SMALL_BYTES: Final = 2**18
"""A document up to this size is parsed at once, in the calling thread: that takes some milliseconds."""
AT_ONCE: Final = 1
POLL_SECONDS: Final = 0.1
"""Between two heartbeats of a validation that waits for a document: the delay after which a cancelled one ends."""


class Parse(Protocol):
    """Runs `read`, which builds objects from a document of this size. Errors of `read` are raised."""

    def __call__(self, size_bytes: int, read: Callable[[], T], /) -> T:
        """Return the result of `read`."""


def parse_at_once(size_bytes: int, read: Callable[[], T], /) -> T:  # noqa: ARG001 - the protocol's form
    """Parse in this thread, whatever the size."""
    return read()


class ParsingThread:
    """Parses the large documents of all validations of a worker, AT_ONCE at the same time."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="parse")

    def of(self, beat: Callable[[str], None]) -> Parse:
        """Return the parser of one validation. `beat` is called while it waits; an error that it raises ends the wait.

        A document whose validation has ended is not begun. One that is being parsed is parsed to its end, and the next
        one waits for it: so never more than AT_ONCE are in memory.
        """

        def parse(size_bytes: int, read: Callable[[], T], /) -> T:
            return read() if size_bytes <= SMALL_BYTES else self._awaited(size_bytes, read, beat)

        return parse

    def _awaited(self, size_bytes: int, read: Callable[[], T], beat: Callable[[str], None]) -> T:
        pending = self._threads.submit(read)
        try:
            while True:
                try:
                    return pending.result(timeout=POLL_SECONDS)
                except TimeoutError:
                    if pending.done():
                        return pending.result()
                    beat(f"parsing a document of {size_bytes} bytes")
        finally:
            pending.cancel()
