"""Input and answer of the activity that takes a change through its stages before the transition, as far as none has to wait."""

from typing import Literal

from ipnext.model.freeze import FreezeAnswer
from ipnext.model.lifecycle import Planned, Resolved, StageInput, TransitionPlanned, ValidationReport
from ipnext.model.value import Value

StageName = Literal["metadata", "validation", "optimization", "freeze", "planning", "transition", "withdrawal"]
"""Of a lifecycle run, as it shows them."""


class PreparationInput(Value):
    """A change, and the stages to try, in their order."""

    stage: StageInput
    stages: tuple[StageName, ...]
    """Not `withdrawal`: it ends only when all is gone."""


class Prepared(Value):
    """Answers of the stages that are done. The run goes on with the first one that has none."""

    resolved: Resolved | None = None
    validated: ValidationReport | None = None
    thawed: FreezeAnswer | None = None
    """Only of a change that no freeze holds."""
    planned: Planned | None = None
    transition: TransitionPlanned | None = None
    """The waves are planned; none has begun."""
