"""Manifest and placement of what serves, while a change that is placed already waits for supply."""

from activities.state.drained_fleet import DrainedFleet
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.store.repository import Repository


def go_by_what_serves(repository: Repository, model: str, change_id: str) -> None:
    """Have this unit of work read the model by what serves, if the change is a repair that passed one that waits.

    The manifest and the placement that the waiting change adopted are left to it. They count for the repair, too, if a
    later plan placed the model, or if what serves had a place in a region that was lost since.
    """
    former, placed = repository.model(model).former, repository.placement(model)
    if former is None or former.placement is None or former.change_id == change_id:
        return
    if placed is None or placed.plan_id != former.plan_id:
        return
    lost = DrainedFleet.of(repository.drains()).lost
    if any(row.count and row.region in lost for row in former.placement.replicas):
        return
    if repository.change(change_id).kind is ChangeKind.REPAIR:
        repository.go_by_former(model)
