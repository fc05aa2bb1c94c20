"""Checks of requests to a model that is retired or being retired."""

from ipnext.errors import Conflict
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository

RESTORED = "it was retired and is applied again: publish it, or roll back to a generation that served"


def check_in_service(unit: Repository, record: ModelRecord) -> ModelRecord:
    """Raise Conflict if a model is retired or being retired."""
    if record.retired:
        msg = f"model {record.name!r} is retired; apply its manifest to bring it back"
        raise Conflict(msg)
    check_not_retiring(unit, record)
    return record


def check_not_retiring(unit: Repository, record: ModelRecord | None) -> None:
    """Raise Conflict while a retirement is open: the requested change would end with it."""
    retirement = None if record is None else unit.open_retirement(record.name)
    if record is not None and retirement is not None:
        raise Conflict(_explain(record.name, retirement))


def _explain(model: str, change: Change) -> str:
    """Explain what a retirement waits for, and what the user may do."""
    if change.state is ChangeState.RUNNING and change.reason is Reason.FROZEN:
        return (
            f"model {model!r} is to be retired by change {change.id}, which is {change.message}; "
            f"`ipnext abort {model}` takes the retirement back, `ipnext override {change.id} --reason TEXT` "
            "lets it pass the freeze"
        )
    held_up = f", which is held up: {change.message}" if change.is_retried else ""
    return (
        f"model {model!r} is being retired by change {change.id}{held_up}; `ipnext wait {model} --for "
        f"change={change.id}`, then apply its manifest to bring it back"
    )


def note_restored(unit: Repository, name: str) -> None:
    """Record that a retired model is restored: in its events, and in its conditions, which reported the retirement."""
    for condition in (ConditionType.UP_TO_DATE, ConditionType.SERVING):
        unit.set_condition(name, condition, "False", Reason.NOT_PUBLISHED, RESTORED)
    unit.add_event(name, "Restored", RESTORED)
