"""The result of a compilation: processor level, deviation of answers, and whether it is within the tolerance."""

from ipnext.model.value import Sha256, Value
from serving.engines.torch.compiled import LibraryDeviation


class CompileReport(Value):
    """The complete answer of `ipnext compile`."""

    snapshot: Sha256
    """Digest of the source."""
    compiled: Sha256 | None
    """Digest of the written snapshot; None if its answers differ by more than the tolerance."""
    torch: str
    compiler: str
    level: str
    flags: tuple[str, ...]
    library_bytes: int
    library_known: bool
    """Whether the program's library was in the cache, so that nothing was compiled."""
    seconds: float
    tolerance: float
    differences: tuple[LibraryDeviation, ...]

    @property
    def is_within(self) -> bool:
        """Whether no answer differs by more than the tolerance."""
        return is_within(self.differences, self.tolerance)


def is_within(differences: tuple[LibraryDeviation, ...], tolerance: float) -> bool:
    """Whether each difference, relative to the largest figure of its output, is at most the tolerance."""
    return all(difference.relative <= tolerance for difference in differences)
