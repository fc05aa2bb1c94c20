"""The snapshots that a region's hosts have fetched: shared by all of them, swept of what nobody wants any more."""

import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path


class SnapshotCache:
    """Directories named by digest, as the artifact store lays them out.

    Hosts fetch at the same time without harm; a file that a host has mapped stays readable after it is removed here.
    """

    def __init__(self, directory: Path, *, keep_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._unwanted_since: dict[str, float] = {}

    def scraps(self) -> tuple[Path, ...]:
        """What cut-off downloads and removals left. Remove it only while no host runs."""
        return tuple(self._directory.glob(".*"))

    def sweep(self, wanted: Collection[str]) -> tuple[Path, ...]:
        """Put aside snapshots that have not been wanted for `keep_seconds`; the paths to `remove`.

        Each leaves in one step, so that a host never takes half of one for the whole.
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
    """Remove directories with all that is in them; may take a while."""
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
