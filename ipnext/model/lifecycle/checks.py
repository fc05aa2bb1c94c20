"""Results of the checks of a validation, the report of a generation, and overrides of refusals.

One form for every check: of IPnext, or of another distribution.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from pydantic import Field

from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value

LIVE_LATENCY: Final = "live-latency"
"""The check that the transition makes, on live replicas."""
BUILT_IN: Final = "built-in"
"""Source of the checks of IPnext."""

BUILT_IN_VALIDATORS: Final[Mapping[str, bool]] = MappingProxyType(
    {
        **dict.fromkeys(("safe-paths", "denied", "safe-formats", "digests", "program", "signature", "engines"), True),
        **dict.fromkeys(("deltas", "checkpoint", "adapter"), True),
        **dict.fromkeys(
            ("adapter-base", "graph-edges", "finite-weights", "interface", "memory", "golden", "replay", LIVE_LATENCY),
            False,
        ),
    }
)
"""Validator -> whether it is required: a manifest can't skip it."""

SAFETY_CRITICAL: Final = frozenset(name for name, required in BUILT_IN_VALIDATORS.items() if required)
"""Checks of digests, signatures, denials, formats and programs, and of whether an engine can load a snapshot. They run
first, one after another, at each validation: no result of theirs is cached, and none can be skipped or overridden."""


class CheckOutcome(StrEnum):
    """How a check of one subject ended."""

    PASSED = "passed"
    REFUSED = "refused"
    SKIPPED = "skipped"
    """The manifest skips the check, or it does not apply; the message has the reason."""
    OVERRIDDEN = "overridden"
    """It refused, and an operator let the change pass."""
    NOT_JUDGED = "not_judged"
    """It could not be made: the message has the reason, the evidence what was found. It stops nothing."""
    FAILED = "failed"
    """The check itself had a fault: nothing is known of the subject. The validation is tried again."""


class CheckResult(Value):
    """One check of one subject."""

    check: str
    subject: str
    """A part, a file, an edge of the graph."""
    outcome: CheckOutcome
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    evidence: Mapping[str, Any] = Field(default_factory=dict)
    """Figures that decided, as JSON."""
    duration_seconds: float = 0.0
    """Processing time of this result, as it was computed."""
    cached: bool = False
    """Whether it was computed by an earlier validation of the same inputs."""
    source: str = BUILT_IN
    """`built-in`, or the distribution that brings the check, with its version and entry point."""

    @property
    def passed(self) -> bool:
        """False if it refused, or failed to run."""
        return self.outcome not in {CheckOutcome.REFUSED, CheckOutcome.FAILED}


class ValidationReport(Value):
    """All checks of one generation. It passes if no check refused."""

    model: Name
    generation: int
    checks: tuple[CheckResult, ...]

    @property
    def refusal(self) -> CheckResult | None:
        """The first check that refused, if any."""
        return next((check for check in self.checks if check.outcome is CheckOutcome.REFUSED), None)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Names of the checks that refused, in their order."""
        return tuple(dict.fromkeys(each.check for each in self.checks if each.outcome is CheckOutcome.REFUSED))


class CheckOverride(Value):
    """A check whose refusals let one change pass."""

    change_id: str
    check: str
    model: Name
    at: datetime
    who: str
    reason: str
