"""Output of the processes of replicas: queried from a region's infrastructure, and returned by the API."""

from collections.abc import Mapping
from datetime import datetime

from pydantic import Field

from ipnext.model.value import Name, Value

DEFAULT_LINES = 50
MOST_LINES = 10_000


class LogQuery(Value):
    """A query for logs of a region, with the amount of each."""

    model: Name
    part: Name | None = None
    replica: int | None = Field(default=None, ge=0)
    """Number of the replica, the last component of its id."""
    tail: int = Field(default=DEFAULT_LINES, ge=0, le=MOST_LINES)
    """Number of last lines of each log."""
    after: Mapping[str, int] | None = None
    """Name of a file -> bytes already read. If given, the answer has only logs named in it, and logs of running
    replicas."""


class ReplicaLog(Value):
    """One file with the output of a replica's process."""

    region: Name
    replica: str
    """Id of the replica: MODEL.PART.HARDWARE.NUMBER."""
    part: Name
    engine: str | None = None
    """Of an engine that the host runs: how the digest begins that it began with. None: of the host itself."""
    former: bool = False
    """Put aside when another start followed, or when it grew too long."""
    ended: bool = False
    """The replica does not run any more."""
    file: str
    """On the machine of the region's agent."""
    written_at: datetime
    text: str
    end: int = Field(ge=0)
    """Bytes of the file up to the end of `text`."""

    @property
    def name(self) -> str:
        """Name of the file, without its directory."""
        return self.file.rpartition("/")[2]

    @property
    def cursor(self) -> str:
        """The cursor for a query of later output."""
        return f"{self.region}/{self.name}@{self.end}"


class LogsView(Value):
    """Logs of a model, what was written last stands last."""

    logs: tuple[ReplicaLog, ...]
    unreachable_regions: tuple[Name, ...] = ()
    """Regions that were asked and did not answer."""
