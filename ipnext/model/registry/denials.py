"""The deny-list: digests that no model may serve."""

from datetime import datetime
from typing import Annotated, Final, NamedTuple

from pydantic import Field, StringConstraints

from ipnext.model.value import Sha256, Value

MOST_DENIALS: Final = 10_000
LONGEST_REASON: Final = 1000
DenialReason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_REASON)]


class Denial(Value):
    """A denied SHA-256: of a snapshot, of a file, or of the image that snapshots come in."""

    number: int = Field(ge=1)
    """Counts denials; a digest that is denied again gets another one."""
    digest: Sha256
    reason: str
    denied_by: str
    denied_at: datetime
    is_carried_out: bool = False
    """Whether all snapshots that it covers were found since, and rollbacks from them recorded."""

    @property
    def text(self) -> str:
        """Description for messages."""
        return f"{self.digest:.16} is denied: {self.reason}"


class CoveredSnapshot(NamedTuple):
    """A snapshot that a denial covers."""

    model: str
    part: str
    number: int
    digest: str
