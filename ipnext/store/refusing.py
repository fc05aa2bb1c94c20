"""Route tables of a model that serves no users yet: with them the gateways answer 503 with the reason, not 404.

Written with the end of a change, for the regions of the model's users. The reconciler sends them to the gateways; the
first transition replaces them.
"""

from ipnext.model.deployment import RouteTable
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


def _regions(repository: Repository, record: ModelRecord) -> set[str]:
    """Return the regions of the fleet with demand."""
    return {item.region for item in record.manifest.spec.demand} & set(repository.region_names())


def _says(table: RouteTable, record: ModelRecord, why: str) -> bool:
    return table == _table(record, table.region, table.revision, why)


def _table(record: ModelRecord, region: str, revision: int, why: str) -> RouteTable:
    access = record.manifest.spec.access.predictions
    return RouteTable(
        model=record.name, region=region, revision=revision, shares=(), served=(), access=access, unmet_rules=(why,)
    )
