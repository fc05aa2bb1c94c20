"""Facts of the store about models that serve or change: only generations at work, whatever their history.

The generations at work are the target, the serving one, and those that replica sets, route tables and the current
transition name; besides them as many former ones as stay warm. Called by `activities.state.desired`, in one unit of
work.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.planning.transition import FleetState, Transition
from ipnext.model.registry.registry import Generation, Snapshot
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository

T = TypeVar("T", Deployment, RouteTable)


def generations_in(transition: Transition) -> frozenset[int]:
    """Return all generations that a transition starts from or leads to."""
    return frozenset().union(*(_of_state(state) for state in (transition.origin, transition.to)))


def at_work(
    record: ModelRecord, deployments: Iterable[Deployment], tables: Iterable[RouteTable], more: Iterable[int] = ()
) -> frozenset[int]:
    """Return the generations that any state of a model names now."""
    named = {number for number in (record.serving_generation, record.target_generation, *more) if number}
    for deployment in deployments:
        named.update(deployment.generations, deployment.own)
    for table in tables:
        named.update(share.generation for share in table.shares)
        named.update(served.generation for served in table.served)
    return frozenset(named)


def snapshots_of(generations: Iterable[Generation]) -> frozenset[tuple[str, str, int]]:
    """Return (model, part or segment, number) of all snapshots that generations are made of."""
    return frozenset(
        (generation.model, part, number) for generation in generations for part, number in generation.named
    )


def read_generations(
    repository: Repository, record: ModelRecord, numbers: Collection[int]
) -> tuple[Mapping[int, Generation], Mapping[tuple[str, int], Snapshot]]:
    """Return the generations of these numbers and the former ones that may stay warm, with their snapshots.

    Two or three queries by keys, at most `numbers` and `keepWarm` rows of generations: nothing grows with the number of
    publishes.
    """
    warm = record.in_force.spec.rollout.keep_warm
    generations = repository.generations_at_work(record.name, numbers, former=warm)
    snapshots = repository.snapshots_named(snapshots_of(generations))
    return {g.number: g for g in generations}, {(s.part, s.number): s for s in snapshots}


def ancestors(repository: Repository, snapshots: Iterable[Snapshot]) -> Mapping[tuple[str, str], Snapshot]:
    """Map (part, digest) to the ancestors of deltas among `snapshots`, down to a full one.

    Missing parents are left out.
    """
    found: dict[tuple[str, str], Snapshot] = {}
    for snapshot in snapshots:
        below: Snapshot | None = snapshot
        while below is not None and below.manifest.is_delta and (below.part, below.manifest.parent) not in found:
            below = repository.snapshot_of(below.model, below.part, below.manifest.parent or "")
            if below is not None:
                found[below.part, below.digest] = below
    return found


def by_model(rows: Iterable[T]) -> Mapping[str, tuple[T, ...]]:
    """Group deployments or route tables by model, in their order."""
    found: dict[str, list[T]] = defaultdict(list)
    for row in rows:
        found[row.model if isinstance(row, RouteTable) else row.key.model].append(row)
    return defaultdict(tuple, {model: tuple(rows) for model, rows in found.items()})


def _of_state(state: FleetState) -> frozenset[int]:
    replicas = {row.generation for row in state.replicas}
    return frozenset(replicas | {share.generation for share in state.traffic})
