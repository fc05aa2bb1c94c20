"""Parses documents of snapshots: one large one at a time in a worker, without delaying a validation that ends.

A large document takes hundreds of megabytes while it is parsed. Nothing in Python can interrupt its parser, and no
other thread runs until it is done: the limits of documents (docs/validation.md) keep that below a second. A
separate thread parses, so that activities that wait for their turn, or for a process that parses, send heartbeats.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Final, Protocol, TypeVar

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


_Document = tuple["Future[Any]", Callable[[], Any]]


class ParsingThread:
    """Parses the large documents of all validations of a worker, AT_ONCE at the same time, by turns of the owners.

    So an owner with many documents delays another one by AT_ONCE documents at most.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="parse")
        self._lock = Lock()
        self._waiting: dict[str, deque[_Document]] = {}
        """Documents by owner; the owner whose turn is next stands first."""
        self._running = 0

    def of(self, beat: Callable[[str], None], *, owner: str = "") -> Parse:
        """Return the parser of one validation. `beat` is called while it waits; an error that it raises ends the wait.

        A document whose validation has ended is not begun. One that is being parsed is parsed to its end, and the next
        one waits for it: so never more than AT_ONCE are in memory.
        """

        def parse(size_bytes: int, read: Callable[[], T], /) -> T:
            return read() if size_bytes <= SMALL_BYTES else self._read_in_thread(owner, size_bytes, read, beat)

        return parse

    def _read_in_thread(self, owner: str, size_bytes: int, read: Callable[[], T], beat: Callable[[str], None]) -> T:
        parsed: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(owner, deque()).append((parsed, read))
        self._begin()
        try:
            while True:
                try:
                    return parsed.result(timeout=POLL_SECONDS)
                except TimeoutError:
                    if parsed.done():
                        return parsed.result()
                    beat(f"parsing a document of {size_bytes} bytes")
        finally:
            parsed.cancel()

    def _begin(self) -> None:
        with self._lock:
            while self._running < AT_ONCE and (found := self._next()) is not None:
                self._running += 1
                self._threads.submit(self._parse, *found)

    def _next(self) -> _Document | None:
        """Take the document of the owner whose turn it is, past those that nobody waits for any more."""
        while self._waiting:
            owner = next(iter(self._waiting))
            documents = self._waiting.pop(owner)
            found = documents.popleft()
            if documents:
                self._waiting[owner] = documents
            if found[0].set_running_or_notify_cancel():
                return found
        return None

    def _parse(self, parsed: "Future[Any]", read: Callable[[], Any]) -> None:
        try:
            parsed.set_result(read())
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            parsed.set_exception(error)
        finally:
            with self._lock:
                self._running -= 1
            self._begin()
