"""The status of a model: the store's record, corrected by the regions' present reports. Pure functions.

A recorded condition describes the end of the last run. If the regions contradict it, the observation wins: `Serving`,
and with it `Ready`, is never true while no replica answers. Such a condition has the time at which the observation was
first made.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ipnext.api.services.model_facts import ModelFacts
from ipnext.api.services.progress import progress_of
from ipnext.api.services.region_states import States
from ipnext.model.api.resources import ModelView
from ipnext.model.deployment.deployment import Deployment, DeploymentKey, DeploymentStatus
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.unserved_regions import (
    binding_reason,
    routed_before,
    unserved_message,
    unserved_regions,
)
from ipnext.model.lifecycle.status import Condition, ConditionType, ModelStatus, Reason, reason_of, with_ready
from ipnext.model.throughput import amount

CRASH_LOOP_RESTARTS = 3
"""A replica that isn't ready after this many restarts is in a crash loop."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A present fault of a replica set or a region."""

    status: Literal["False", "Unknown"]
    reason: Reason
    message: str
    region: str
    part: str | None = None
    host: str | None = None
    log: str | None = None
    """The file with the host's output."""
    told: str = ""
    """The host's own message about it."""


def model_view(facts: ModelFacts, states: States) -> ModelView:
    """Return a model as applied and as observed."""
    record = facts.record
    return ModelView(
        manifest=record.manifest,
        version=record.version,
        retired=record.retired,
        created_at=record.created_at,
        updated_at=record.updated_at,
        status=model_status(facts, states),
        deployments=deployment_statuses(facts, states),
        layout=facts.layout,
    )


def model_status(facts: ModelFacts, states: States) -> ModelStatus:
    """Return the `status` block of a model."""
    record = facts.record
    return ModelStatus(
        model=record.name,
        generation=record.generation,
        observed_generation=record.observed_generation,
        serving_generation=record.serving_generation,
        target_generation=record.target_generation,
        conditions=observed_conditions(facts, states),
        traffic=traffic_of(facts, states),
        replicas=states.of(record.name),
        plan_id=facts.plan_id,
        run_id=next((c.run_id for c in facts.changes if c.run_id is not None), None),
        unreachable_regions=unreachable(facts, states),
    )


def traffic_of(facts: ModelFacts, states: States) -> Mapping[str, tuple[RouteShare, ...]]:
    """Map each region to the shares of its requests.

    While a retirement takes the model out, regions whose gateway reports that it does not know the model are left out.
    """
    retires = any(change.kind is ChangeKind.RETIRE and _moves(change) for change in facts.changes)
    reports = {table.region: states.get(table.region) for table in facts.routes} if retires else {}
    gone = {region for region, state in reports.items() if state is not None and facts.record.name not in state.routes}
    return {table.region: table.shares for table in facts.routes if table.region not in gone}


def _moves(change: Change) -> bool:
    """Check whether a change runs and waits for no freeze."""
    return change.state is ChangeState.RUNNING and change.reason is not Reason.FROZEN


def unreachable(facts: ModelFacts, states: States) -> tuple[str, ...]:
    """Return the regions of the model that did not answer."""
    regions = {d.key.region for d in facts.deployments if d.replicas} | {s.to for t in facts.routes for s in t.shares}
    return tuple(sorted(region for region in regions if states.get(region) is None))


def deployment_statuses(facts: ModelFacts, states: States) -> tuple[DeploymentStatus, ...]:
    """Return desired and ready replicas of each replica set."""
    sets = _replica_sets(states.of(facts.record.name))
    return tuple(
        DeploymentStatus(
            key=deployment.key,
            wanted=deployment.replicas,
            ready=_ready_of(deployment, sets.get(_slot(deployment.key), ())),
            generations=deployment.generations,
        )
        for deployment in sorted(facts.deployments, key=lambda d: str(d.key))
    )


def observed_conditions(facts: ModelFacts, states: States) -> tuple[Condition, ...]:
    """Return the recorded conditions; observations override those recorded as true. `Ready` follows from them."""
    generation = facts.record.serving_generation
    worst: Mapping[ConditionType, Trouble | None] = {}
    if generation is not None:
        worst = {
            ConditionType.CAPACITY_READY: _worst(
                (*capacity_troubles(facts, states, generation), *unmet_troubles(facts))
            ),
            ConditionType.SERVING: _worst(serving_troubles(facts, states)),
        }
    found = [
        _observe_condition(condition, worst, states.at, settled=all(change.state.final for change in facts.changes[:1]))
        for condition in facts.conditions
        if condition.type is not ConditionType.PROGRESSING
    ]
    return with_ready([*found, *progress_of(facts.conditions, facts.changes, since=facts.record.created_at)])


def capacity_troubles(facts: ModelFacts, states: States, generation: int) -> tuple[Trouble, ...]:
    """Return the replica sets of a generation that have fewer ready replicas than desired, or can't be observed."""
    wanted = (d for d in facts.deployments if generation in d.generations and d.replicas)
    sets = _replica_sets(states.of(facts.record.name))
    found = (_shortage(d, states, sets.get(_slot(d.key), ()), generation) for d in wanted)
    return tuple(trouble for trouble in found if trouble is not None)


def unmet_troubles(facts: ModelFacts) -> tuple[Trouble, ...]:
    """Return the users' regions whose demand the plan in force leaves unserved, in part or whole."""
    unit = facts.record.manifest.spec.unit
    return tuple(
        Trouble(
            "False",
            binding_reason(unmet.rules),
            f"the plan leaves {amount(unmet.qps, unit)} of users of {unmet.region} unserved: {', '.join(unmet.rules)}",
            unmet.region,
        )
        for unmet in facts.unmet
    )


def serving_troubles(facts: ModelFacts, states: States) -> tuple[Trouble, ...]:
    """Return unserved users' regions, and routes to regions that can't answer for the model.

    Such a region can't be observed, or a part has no ready replica there.

    Regions that only a newer manifest names are left out: the change that brings it, or was refused, tells why.
    """
    replicas, record = states.of(facts.record.name), facts.record
    serves = record.serving_generation is not None
    unserved = unserved_regions(record.manifest, facts.routes) if serves else {}
    if record.observed_generation < record.generation:
        unserved = routed_before(unserved, facts.routes)
    troubles = [
        Trouble("False", binding_reason(rules), unserved_message(region, rules), region)
        for region, rules in unserved.items()
    ]
    for region, generation, parts in _list_routed(facts):
        if states.get(region) is None:
            troubles.append(_no_answer(region))
            continue
        for part in parts:
            ready = [r for r in replicas if r.key.region == region and r.key.part == part and generation in r.ready]
            if not ready:
                troubles.append(_no_replica(facts, region, part, replicas, generation))
    return tuple(troubles)


def _list_routed(facts: ModelFacts) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Yield (serving region, generation, parts) of every route with traffic, each once.

    A table lists the parts only of generations that its own region serves.
    """
    served = {(table.region, one.generation): one for table in facts.routes for one in table.served}
    anywhere = {generation: one for (_, generation), one in served.items()}
    seen = {(share.to, share.generation) for table in facts.routes for share in table.shares if share.fraction > 0}
    for region, generation in sorted(seen):
        found = served.get((region, generation), anywhere.get(generation))
        yield region, generation, _list_hosted_parts(facts, found) if found is not None else ()


def _list_hosted_parts(facts: ModelFacts, served: ServedGeneration) -> tuple[str, ...]:
    """Return the parts whose hosts a generation's requests need; a segment that none holds counts as a part."""
    hosts = {piece: d.key.part for d in facts.deployments for piece in d.pieces(served.generation)}
    return tuple(dict.fromkeys(hosts.get(piece, piece) for piece in served.snapshots))


def _slot(key: DeploymentKey) -> tuple[str, str, str]:
    """Return the replica set's place within its model."""
    return (key.part, key.region, key.hardware)


def _replica_sets(replicas: Iterable[Replica]) -> Mapping[tuple[str, str, str], Sequence[Replica]]:
    """Map each slot to the replicas of one model there."""
    found: dict[tuple[str, str, str], list[Replica]] = defaultdict(list)
    for replica in replicas:
        found[_slot(replica.key)].append(replica)
    return found


def _ready_of(deployment: Deployment, replicas: Iterable[Replica]) -> int:
    """Count the set's replicas that are ready for all of their desired generations."""
    if deployment.own:
        alone = deployment.own.keys() | deployment.shadow.keys()
        return sum(not alone.isdisjoint(replica.ready) for replica in replicas)
    return sum(
        deployment.clients_generations.issubset(replica.ready) or not deployment.shadow.keys().isdisjoint(replica.ready)
        for replica in replicas
    )


def _shortage(deployment: Deployment, states: States, replicas: Sequence[Replica], generation: int) -> Trouble | None:
    key = deployment.key
    if states.get(key.region) is None:
        return _no_answer(key.region)
    mine = [replica for replica in replicas if generation not in replica.ready]
    ready = len(replicas) - len(mine)
    wanted = deployment.replicas_of(generation)
    if ready >= wanted:
        return None
    reason, message, host = cause_of(mine)
    text = f"{ready} of {wanted} replicas of {key.part!r} are ready in {key.region} on {key.hardware}"
    return Trouble(
        "False",
        reason,
        f"{text}{f': {message}' if message else ''}",
        key.region,
        _part_of(mine, host, key.part),
        host,
        _log_of(mine, host),
        message,
    )


def _no_replica(facts: ModelFacts, region: str, part: str, replicas: Iterable[Replica], generation: int) -> Trouble:
    mine = [r for r in replicas if r.key.region == region and r.key.part == part and generation not in r.ready]
    reason, message, host = cause_of(mine)
    text = f"no replica of {part!r} answers for generation {generation} in {region}"
    if any(d.key.region == region and d.key.part == part and d.replicas for d in facts.deployments) is False:
        reason = Reason.NO_CAPACITY
    return Trouble(
        "False",
        reason,
        f"{text}{f': {message}' if message else ''}",
        region,
        _part_of(mine, host, part),
        host,
        _log_of(mine, host),
        message,
    )


def _part_of(replicas: Iterable[Replica], host: str | None, part: str) -> str:
    """Return the part, or the adapter on it that the host could not load, from the host's first failure."""
    failure = next((failure for replica in replicas if replica.id == host for failure in replica.failures), None)
    return (failure and failure.adapter) or part


def _log_of(replicas: Iterable[Replica], host: str | None) -> str | None:
    return next((replica.log for replica in replicas if replica.id == host), None)


def _no_answer(region: str) -> Trouble:
    return Trouble("Unknown", Reason.REGION_UNREACHABLE, f"region {region} does not answer", region)


def awaited_regions(facts: ModelFacts, states: States) -> tuple[Trouble, ...]:
    """Return the unreachable regions for which a repair waits: it has to restore their replicas or their gateway."""
    held = {deployment.key.region for deployment in facts.deployments}
    concerned = held | {table.region for table in facts.routes} | {s.to for t in facts.routes for s in t.shares}
    silent = (region for region in sorted(concerned) if states.get(region) is None)
    return tuple(
        Trouble(
            "Unknown", Reason.REGION_UNREACHABLE, f"the repair waits for region {region}, which does not answer", region
        )
        for region in silent
    )


def cause_of(replicas: Iterable[Replica]) -> tuple[Reason, str, str | None]:
    """Return why replicas aren't ready: reason, the host's own message, the host's id, of the worst replica."""
    replicas = list(replicas)
    for replica in replicas:
        for failure in replica.failures:
            return reason_of(failure.code, otherwise=Reason.LOAD_FAILED), failure.message, replica.id
    for replica in replicas:
        if replica.phase is ReplicaPhase.FAILED or replica.restarts >= CRASH_LOOP_RESTARTS:
            return Reason.CRASH_LOOP, replica.message or f"restarted {replica.restarts} times", replica.id
    slowest = next((r for r in replicas if r.coming), None) or next((r for r in replicas if r.starts), None)
    slowest = slowest or next(iter(replicas), None)
    return Reason.PROGRESSING, slowest.doing if slowest else "", slowest.id if slowest else None


def _worst(troubles: Iterable[Trouble]) -> Trouble | None:
    """Return the worst trouble: known faults before unknown ones; a cause before mere progress."""
    ranked = sorted(troubles, key=lambda t: (t.status != "False", t.reason is Reason.PROGRESSING))
    return ranked[0] if ranked else None


def _observe_condition(
    condition: Condition, worst: Mapping[ConditionType, Trouble | None], at: datetime, *, settled: bool
) -> Condition:
    """Return a condition as observed now.

    `settled`: no change is under way, so missing capacity may be ready by now.
    """
    trouble = worst.get(condition.type)
    lacks = condition.type is ConditionType.CAPACITY_READY and condition.status == "False"
    if lacks and settled and trouble is None and condition.type in worst:
        message = f"what was missing is ready by now; it was: {condition.message}"
        return condition.model_copy(
            update={"status": "True", "reason": Reason.SUCCEEDED, "message": message, "last_transition_time": at}
        )
    return _contradict(condition, trouble, at)


def _contradict(condition: Condition, trouble: Trouble | None, at: datetime) -> Condition:
    if trouble is None or condition.status != "True":
        return condition
    return Condition(
        type=condition.type,
        status=trouble.status,
        reason=trouble.reason,
        message=trouble.message,
        last_transition_time=at,
    )
