"""The snapshots that a region's hosts have fetched: shared by all of them; undesired ones are swept."""

import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path


class SnapshotCache:
    """Directories named by digest, in the layout of the artifact store.

    Hosts may fetch at the same time; a file that a host has mapped stays readable after it is removed here.
    """

    def __init__(self, directory: Path, *, keep_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._unwanted_since: dict[str, float] = {}

    def scraps(self) -> tuple[Path, ...]:
        """Return the remains of interrupted downloads and removals. Remove them only while no host runs."""
        return tuple(self._directory.glob(".*"))

    def sweep(self, wanted: Collection[str]) -> tuple[Path, ...]:
        """Rename snapshots that have not been desired for `keep_seconds`; return the paths to `remove`.

        Each is renamed in one step, so that a host never takes a part of one for the whole.
        """
        now = self._clock()
        present = {path.name for path in self._directory.glob("[!.]*")}
        unwanted = present - set(wanted)
        self._unwanted_since = {digest: self._unwanted_since.get(digest, now) for digest in unwanted}
        old = sorted(digest for digest, since in self._unwanted_since.items() if now - since >= self._keep_seconds)
        return tuple(self._put_aside(digest) for digest in old)

    def _put_aside(self, digest: str) -> Path:
        aside = self._directory / f".{digest}.{time.time_ns()}"
        return (self._directory / digest).rename(aside)


def remove(directories: Iterable[Path]) -> None:
    """Remove directories with all their content; may take a while."""
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
