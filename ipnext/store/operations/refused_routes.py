"""Route tables for users that a manifest names and no generation serves.

The gateways answer 503 with the reason, not 404. The tables are written when a change is recorded, when a freeze blocks
it and when it ends. A model without a serving generation has one in each region of its users, a serving model in the
regions that only a newer manifest names. The reconciler sends them to the gateways; the next transition replaces them.
"""

from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import TransitionState
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository

LOOKED_AT = 4
"""Newest transitions of a model that may be open: one moves it, and those that were refused since are few."""

_OPEN = frozenset({TransitionState.PLANNED, TransitionState.RUNNING})


def refuse_users(repository: Repository, record: ModelRecord, why: str) -> None:
    """Store or update such tables if none of the model's generations serves. `why` is the reason shown to users.

    Nothing is written while a transition moves the model, or a table still sends users to a region, or lists a
    generation: the reconciler withdraws it first.
    """
    if record.retired or record.serving_generation is not None or repository.is_moved(record.name):
        return
    stored = repository.routes(record.name)
    if not all(table.refuses for table in stored):
        return
    wanted = _regions(repository, record)
    if wanted == {table.region for table in stored} and all(_says(table, record, why) for table in stored):
        return
    repository.delete_routes(record.name)
    revision = max((table.revision for table in stored), default=0) + 1
    for region in sorted(wanted):
        repository.put_route(_table(record, region, revision, why))


def refuse_further_users(repository: Repository, record: ModelRecord, reason: Reason) -> None:
    """Store, update or delete pending tables of a model that serves or is moved, in regions that no transition serves.

    `reason` is why the newest manifest does not serve. Regions of a transition that moves the model are left to it.
    """
    if record.retired or (record.serving_generation is None and not repository.is_moved(record.name)):
        return
    why = f"revision {record.generation} of the manifest does not serve ({reason})"
    if reason is Reason.SUCCEEDED:
        why = "the plan in force does not know them yet"
    stored = {table.region: table for table in repository.routes(record.name)}
    moved = _moved_regions(repository, record.name)
    pending = {region: table for region, table in stored.items() if table.pending and region not in moved}
    wanted = _regions(repository, record) - (stored.keys() - pending.keys()) - moved
    for region in sorted(pending.keys() - wanted):
        repository.delete_routes(record.name, region)
    # above that of a table which was deleted: another manifest was applied since
    least = max((table.revision for table in stored.values() if not table.pending), default=0) + record.version
    for region in sorted(wanted):
        known = pending[region].revision if region in pending else 0
        table = _table(record, region, max(least, known) + 1, why, pending=True)
        if region not in pending or not _says(pending[region], record, why):
            repository.put_route(table)


def _regions(repository: Repository, record: ModelRecord) -> set[str]:
    """Return the regions of the fleet with demand."""
    return {item.region for item in record.manifest.spec.demand} & set(repository.region_names())


def _moved_regions(repository: Repository, model: str) -> frozenset[str]:
    """Return the users' regions whose tables an open transition of the model writes."""
    if not repository.is_moved(model):
        return frozenset()
    newest = repository.transitions(model, limit=LOOKED_AT)
    found = frozenset[str]()
    for transition in (each.transition for each in newest if each.state in _OPEN):
        found |= {item.region for item in transition.demand}
        found |= {share.origin for state in (transition.origin, transition.to) for share in state.traffic}
    return found


def _says(table: RouteTable, record: ModelRecord, why: str) -> bool:
    return table == _table(record, table.region, table.revision, why, pending=table.pending)


def _table(record: ModelRecord, region: str, revision: int, why: str, *, pending: bool = False) -> RouteTable:
    return RouteTable(
        model=record.name,
        region=region,
        revision=revision,
        shares=(),
        served=(),
        access=record.manifest.spec.access.predictions,
        unmet_rules=(why,),
        pending=pending,
    )
