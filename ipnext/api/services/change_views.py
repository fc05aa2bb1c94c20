"""What changes show beyond their record: their stages, and the shadow that one keeps. Pure functions."""

from datetime import datetime

from ipnext.model.api.resources import ChangeView
from ipnext.model.api.stages import StageProgress, StageState
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.changes.change_stages import ChangeStage, Stages
from ipnext.model.lifecycle.shadow import ShadowView
from ipnext.store.changes.shadows import StoredShadow

_ENDS: dict[ChangeState, StageState] = {
    ChangeState.DONE: "passed",
    ChangeState.REFUSED: "refused",
    ChangeState.ROLLED_BACK: "rolled_back",
    ChangeState.SUPERSEDED: "superseded",
}
"""State of the stage in which a change ended."""


def add_stages(view: ChangeView, stages: Stages) -> ChangeView:
    """Return the view of a change with its stages."""
    return view.model_copy(update={"stages": stages_of(view, stages)}) if stages else view


def add_shadow(view: ChangeView, stored: StoredShadow | None) -> ChangeView:
    """Return the view of a change with the shadow that it keeps."""
    if stored is None or stored.shadow.change_id != view.id:
        return view
    return view.model_copy(update={"shadow": view_shadow(stored)})


def view_shadow(stored: StoredShadow) -> ShadowView:
    """Return a shadow as users see it."""
    shadow, seen = stored.shadow, stored.seen
    return ShadowView(
        generation=shadow.generation,
        share=shadow.settings.share,
        regions=shadow.regions,
        takes=shadow.takes,
        state=seen.state,
        message=seen.message,
        evidence=seen.evidence,
        since=stored.since,
    )


def stages_of(change: Change, stages: Stages) -> tuple[StageProgress, ...]:
    """Return how far a change is in each of its stages.

    One that has not ended is where the change is, or ended. A stage before it without an end had nothing to wait for.
    """
    open_ = (index for index, each in enumerate(stages) if each.began_at is not None and each.outcome is None)
    current = next(open_, None)
    return tuple(_progress(change, each, index, current) for index, each in enumerate(stages))


def _progress(change: Change, stage: ChangeStage, index: int, current: int | None) -> StageProgress:
    ended = stage.ended_at or (change.finished_at if index == current else None)
    return StageProgress(
        name=stage.name,
        source=stage.source,
        state=_state(change, stage, index, current),
        began_at=stage.began_at,
        seconds=_seconds(stage.began_at, ended),
        message=stage.message,
    )


def _state(change: Change, stage: ChangeStage, index: int, current: int | None) -> StageState:
    if stage.outcome is not None:
        return stage.outcome
    if index == current:
        return _ENDS[change.state] if change.state.final else "running"
    if change.state is ChangeState.DONE or (current is not None and index < current):
        return "passed"
    return "not_reached" if change.state.final or current is None else "to_come"


def _seconds(began: datetime | None, ended: datetime | None) -> float | None:
    return None if began is None or ended is None else max(0.0, round((ended - began).total_seconds(), 3))
