"""How far a change is in its stages: the order that it keeps, and when each stage began and ended. Pure functions.

A stage begins when the one before it ends. `freeze` is left out of that: it takes time only while a freeze holds the
change.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final, Literal

from ipnext.model.lifecycle.changes.stage_order import ComposedStage
from ipnext.model.lifecycle.checks import BUILT_IN
from ipnext.model.value import Name, Value

FREEZE: Final = "freeze"
LONGEST_MESSAGE: Final = 500
"""Characters that are kept of a stage's message; the report of the generation has all of it."""

StageOutcome = Literal["passed", "refused", "failed", "skipped"]
"""`skipped`: it had nothing to do."""


class ChangeStage(Value):
    """One stage of a change's order."""

    name: Name
    source: str = BUILT_IN
    """`built-in`, or the distribution that brings it, with its version and entry point."""
    began_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: StageOutcome | None = None
    """None: it has not ended, or its end is that of the change."""
    message: str = ""


Stages = tuple[ChangeStage, ...]


def begin_stages(order: Iterable[ComposedStage], at: datetime) -> Stages:
    """Return the stages of a change that begins."""
    stages = tuple(ChangeStage(name=each.name, source=each.call.source if each.call else BUILT_IN) for each in order)
    return _begin_next(stages, at)


def end_stage(
    stages: Stages,
    name: str,
    at: datetime,
    *,
    outcome: StageOutcome = "passed",
    message: str = "",
    skips: Collection[str] = (),
) -> Stages:
    """Return the stages after the end of one. `skips`: stages that will have nothing to do."""
    end = {"ended_at": at, "outcome": outcome, "message": message[:LONGEST_MESSAGE]}
    found = tuple(_ended(each, end, skips) if each.name == name or each.name in skips else each for each in stages)
    return _begin_next(found, at) if outcome in {"passed", "skipped"} else found


def hold_stage(stages: Stages, name: str, at: datetime) -> Stages:
    """Return the stages while one of them holds the change: no later one has begun."""
    return tuple(_hold_back(stages, name, at))


def _ended(stage: ChangeStage, end: Mapping[str, object], skips: Collection[str]) -> ChangeStage:
    if stage.name in skips:
        return stage.model_copy(update={"began_at": None, "outcome": "skipped"})
    return stage.model_copy(update=end)


def _hold_back(stages: Stages, name: str, at: datetime) -> Iterator[ChangeStage]:
    is_later = False
    for stage in stages:
        if stage.name == name:
            is_later = True
            yield stage.model_copy(update={"began_at": stage.began_at or at, "ended_at": None, "outcome": None})
        else:
            yield stage.model_copy(update={"began_at": None}) if is_later and stage.outcome is None else stage


def _begin_next(stages: Stages, at: datetime) -> Stages:
    """Begin the first stage that has not ended."""
    name = next((each.name for each in stages if each.outcome is None and each.name != FREEZE), None)
    return tuple(each.model_copy(update={"began_at": at}) if each.name == name else each for each in stages)
