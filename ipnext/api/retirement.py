"""What may be asked of a model that is retired, or on its way there."""

from ipnext.errors import Conflict
from ipnext.model.lifecycle import ChangeKind
from ipnext.model.status import ConditionType, Reason
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository

RESTORED = "it was retired and is applied again: publish it, or roll back to a generation that served"


def check_in_service(unit: Repository, record: ModelRecord) -> ModelRecord:
    """Raise Conflict for a model that is retired, or that a retirement is about to take out of service."""
    if record.retired:
        msg = f"model {record.name!r} is retired; apply its manifest to bring it back"
        raise Conflict(msg)
    check_not_retiring(unit, record)
    return record


def check_not_retiring(unit: Repository, record: ModelRecord | None) -> None:
    """Raise Conflict while a retirement is open: what is asked now would end with it."""
    retiring = None if record is None else unit.open_kinds(record.name).get(ChangeKind.RETIRE)
    if record is not None and retiring is not None:
        msg = (
            f"model {record.name!r} is being retired by change {retiring}; `ipnext wait {record.name} --for change={retiring}`, "
            "then apply its manifest to bring it back"
        )
        raise Conflict(msg)


def note_restored(unit: Repository, name: str) -> None:
    """Write down that a retired model is back: in its events, and in its conditions, which said that it is retired."""
    for condition in (ConditionType.UP_TO_DATE, ConditionType.SERVING):
        unit.set_condition(name, condition, "False", Reason.NOT_PUBLISHED, RESTORED)
    unit.add_event(name, "Restored", RESTORED)
