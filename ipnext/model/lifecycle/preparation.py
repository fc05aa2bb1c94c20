"""Input and answer of the activity for all stages of a change before its transition.

It ends at the first stage that has to wait.
"""

from ipnext.model.lifecycle.changes.lifecycle_run import PlanningResult, ResolutionResult, StageInput
from ipnext.model.lifecycle.changes.transition_run import TransitionPlanned
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.manifest.freeze import FreezeAnswer
from ipnext.model.value import Value


class PreparationInput(Value):
    """A change, and the stages to try, in their order."""

    stage: StageInput
    stages: tuple[str, ...]
    """Never `withdrawal`: it ends only when everything has gone."""


class PreparationResult(Value):
    """Answers of the finished stages. The run continues with the first stage without one."""

    resolved: ResolutionResult | None = None
    validated: ValidationReport | None = None
    thawed: FreezeAnswer | None = None
    """Only for a change without a freeze."""
    planned: PlanningResult | None = None
    transition: TransitionPlanned | None = None
    """The waves are planned; none has begun."""
