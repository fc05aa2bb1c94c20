"""Route tables for users that a manifest names and no generation serves.

The gateways answer 503 with the reason, not 404. Written when a change ends or a freeze holds it: for a model that
serves nobody in all regions of its users, for one that serves in the regions that only a newer manifest names. The
reconciler sends them to the gateways; the next transition replaces them.
"""

from ipnext.model.deployment.deployment import RouteTable
from ipnext.model.lifecycle.status import Reason
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository


def refuse_users(repository: Repository, record: ModelRecord, why: str) -> None:
    """Store or update such tables if none of the model's generations serves. `why` is the reason shown to users.

    Nothing is written while a table still sends users to a region, or lists a generation: the reconciler withdraws it
    first.
    """
    if record.retired or record.serving_generation is not None:
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
    """Store, update or delete pending tables of a serving model, in regions for which no transition has written one.

    `reason` is why the newest manifest does not serve. Nothing is written while a transition moves the model.
    """
    if record.retired or record.serving_generation is None or repository.is_moved(record.name):
        return
    why = f"revision {record.generation} of the manifest does not serve ({reason})"
    if reason is Reason.SUCCEEDED:
        why = "the plan in force does not know them yet"
    stored = {table.region: table for table in repository.routes(record.name)}
    pending = {region: table for region, table in stored.items() if table.pending}
    wanted = _regions(repository, record) - (stored.keys() - pending.keys())
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
