"""Facts of the store about many models at once, as far as a failover of their users needs them.

Called when a region is lost, and when it is restored: for hundreds of models, in batches.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable

from activities.state.desired import DesiredFacts, index_tables, pending_revisions, round_trips
from activities.state.drained_fleet import DrainedFleet
from activities.state.facts import at_work, by_model, snapshots_of
from activities.state.shadow_sets import without_shadow
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import Generation, Snapshot
from ipnext.store.repository import Repository


def read_routed(repository: Repository, models: Collection[str]) -> tuple[DesiredFacts, ...]:
    """Read the facts for a failover of many models' users, in the order of `models`.

    Snapshots are read only if no route table describes their generation. The number of queries is the same for one
    model and for hundreds. Unknown models are left out.
    """
    drained = DrainedFleet.of(repository.drains())
    records = {record.name: record for record in repository.models_named(models)}
    deployments, tables = by_model(repository.deployments_of(models)), by_model(repository.routes_of(models))
    numbers = {
        (name, number)
        for name, record in records.items()
        for number in at_work(record, deployments[name], tables[name])
    }
    generations: dict[str, dict[int, Generation]] = defaultdict(dict)
    undescribed = list[Generation]()
    for found in repository.generations_named(numbers):
        generations[found.model][found.number] = found
        described = found.layout is None and any(
            served.generation == found.number for table in tables[found.model] for served in table.served
        )
        undescribed += [] if described else [found]
    snapshots: dict[str, dict[tuple[str, int], Snapshot]] = defaultdict(dict)
    for held in repository.snapshots_named(snapshots_of(undescribed)):
        snapshots[held.model][held.part, held.number] = held
    stored = repository.shadows(records.keys())
    shadows = {name: found.shadow.outside(drained.regions) for name, found in stored.items()}
    rtt_ms = round_trips(repository) if drained.lost else {}
    return tuple(
        DesiredFacts(
            manifest=records[name].in_force,
            target=0,
            generations=generations[name],
            snapshots=snapshots[name],
            deployments={d.key: d for d in without_shadow(deployments[name])},
            tables=index_tables(tables[name]),
            pending=pending_revisions(tables[name]),
            serving=records[name].serving_generation,
            lost=drained.lost,
            shadow=shadows.get(name),
            rtt_ms=rtt_ms,
        )
        for name in models
        if name in records
    )


def merge_served(new: Iterable[ServedGeneration], old: Iterable[ServedGeneration]) -> tuple[ServedGeneration, ...]:
    """Merge by generation: all of `new`, and those of `old` that it lacks."""
    found = {served.generation: served for served in (*old, *new)}
    return tuple(found[number] for number in sorted(found))


def name_shadow(facts: DesiredFacts, table: RouteTable) -> RouteTable:
    """Return a route table that names the model's shadow, if one is kept in its region, and no other one."""
    if facts.shadow is not None:
        return facts.shadow.put_into(table)
    return table if table.shadow is None else table.model_copy(update={"shadow": None})
