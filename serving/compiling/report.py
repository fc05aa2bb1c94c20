"""What a compilation gives: for which processors, how its answers differ, and whether that is within the tolerance."""

from ipnext.model.value import Sha256, Value
from serving.engines.torch.compiled import Difference


class CompileReport(Value):
    """The whole answer of `ipnext compile`."""

    snapshot: Sha256
    """Digest of the source."""
    compiled: Sha256 | None
    """Digest of the snapshot that was written; none where its answers differ by more than the tolerance."""
    torch: str
    compiler: str
    level: str
    flags: tuple[str, ...]
    library_bytes: int
    library_known: bool
    """Whether the program's library was in the cache, so that nothing was compiled."""
    seconds: float
    tolerance: float
    differences: tuple[Difference, ...]

    @property
    def is_within(self) -> bool:
        """Whether no answer differs by more than the tolerance."""
        return is_within(self.differences, self.tolerance)


def is_within(differences: tuple[Difference, ...], tolerance: float) -> bool:
    """Whether each difference, in relation to the largest figure of its output, is the tolerance or less."""
    return all(difference.relative <= tolerance for difference in differences)
