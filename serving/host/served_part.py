"""A loaded part in service.

The limits of its passes, their predicted cost, the request forms it has checked, and its counters. Made by
serving.host.loader, used by serving.host.batching and serving.host.part_server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ipnext.errors import LoadFailed
from serving.engines.base import LoadedPart, StagedPart, StagedPass
from serving.host.latency_model import Costs
from serving.metrics.tallies import PartTally
from serving.protocol.request_templates import FormsSeen
from serving.protocol.response_templates import AnswerForms


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one pass: rows, and predicted milliseconds. `off`: one request per pass."""

    max_rows: int = 512
    latency_ms: float = 10.0
    off: bool = False


def batch_limits(settings: Mapping[str, Any]) -> BatchLimits:
    """Parse a part's engine setting `batching`: false, or {maxRows, latencyMs}. LoadFailed if it is anything else."""
    given = settings.get("batching", {})
    if given is False:
        return BatchLimits(off=True)
    if given is True:
        given = {}
    allowed = {"maxRows": "max_rows", "latencyMs": "latency_ms"}
    if not isinstance(given, Mapping) or not given.keys() <= allowed.keys():
        msg = f"settings.batching: must be false or an object of maxRows and latencyMs, got {given!r}"
        raise LoadFailed(msg)
    for name, value in given.items():
        if type(value) not in ((int,) if name == "maxRows" else (int, float)) or value <= 0:
            msg = f"settings.batching.{name}: must be a number above 0, got {value!r}"
            raise LoadFailed(msg)
    return BatchLimits(**{allowed[name]: value for name, value in given.items()})


class ServedPart:
    """A loaded part with the estimated costs of its passes. The loader that loaded `part` closes it."""

    def __init__(self, part: LoadedPart, limits: BatchLimits) -> None:
        self.part = part
        self.limits = limits
        self.costs = Costs()
        self.tally = PartTally()
        self.joins = part.rows_are_independent and not limits.off
        self.fitting = FormsSeen()
        self.answer_forms = AnswerForms()
        self._staged: dict[frozenset[str], StagedPass | None] = {}

    def stage(self, late: frozenset[str]) -> StagedPass | None:
        """Return the part's two-step pass for inputs that arrive late; None if it has none for these."""
        if late not in self._staged:
            self._staged[late] = self.part.stage(late) if isinstance(self.part, StagedPart) else None
        return self._staged[late]

    @property
    def size_bytes(self) -> int:
        """Memory that the part's weights take, in bytes."""
        return self.part.size_bytes

    def close(self) -> None:
        """Free the part's memory."""
        self.part.close()


@dataclass(frozen=True, slots=True, eq=False)
class StartedPass:
    """A pass whose share without late inputs is computed. `seconds` is the time that took."""

    staged: StagedPass
    state: Any
    seconds: float
