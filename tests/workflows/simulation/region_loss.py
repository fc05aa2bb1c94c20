"""A region that is gone for long: traffic is sent around it at once, the planner repairs, and one day it is back."""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

from activities.state.replica_sets import shrinking_first
from activities.state.routes.failover_shares import Survivor
from activities.state.wave_state import keep_held_shares
from tests.workflows.simulation.runs import reconciliation
from tests.workflows.simulation.transitions.steps.wave_shares import list_survivors, send_around, served_generations

from .infrastructure import Key
from .journal import Table

Steps = Generator[Any, Any, Any]
LOOK_SECONDS = 5.0


def lose(world: Any, region: str) -> None:
    """All its hosts and its gateway are gone, and it was said that it is lost."""
    found = world.infra.regions[region]
    found.dead_until = float("inf")
    for host in found.replicas:
        host.crash(float("inf"))
    world.lost.add(region)
    world.lost_after[region] = world.journal.newest
    world.faults.count("region lost")
    world.tell("fault", f"{region} is lost")
    world.invariants.excuses.strained.update(world.entities)
    world.invariants.answers.sent.clear()


def send_users_around(world: Any, region: str) -> Steps:
    """As activities/regions/failover.py, until no gateway names it."""
    yield world.faults.latency()
    while region in world.lost:
        for model in sorted(world.entities):
            if not world.journal.is_retiring(model):
                _fail_over(world, model)
        if not _is_named(world, region):
            break
        yield LOOK_SECONDS
    world.requests.replan()


def return_region(world: Any, region: str) -> Steps:
    """As activities/regions/recovery.py: its gateway and its hosts follow the store; then its supply counts again."""
    found, now = world.infra.regions[region], world.clock.now
    found.dead_until = now
    for host in found.replicas:
        host.recover(now + 1.0 + world.faults.latency())
    while not world.infra.reachable(region):
        yield LOOK_SECONDS
    for model, record in sorted(world.journal.records.items()):
        table = record.tables.get(region)
        if table is None:
            found.routes.pop(model, None)
            continue
        served = served_generations(record, region, record.deployments.values())
        revision = max(table.revision, found.routes.get(model, (0, ()))[0]) + 1
        known = {(t.region, number) for t in record.tables.values() if t.region != region for number in t.served}
        shares = keep_held_shares(table.shares, known | {(region, number) for number in served})
        served |= table.served & _sent_to(record, region)
        record.tables[region] = Table(region, revision, shares, served)
        found.routes[model], found.served[model] = (revision, shares), served
    wanted = {
        key: d for r in world.journal.records.values() for key, d in r.deployments.items() if key.region == region
    }
    for key in sorted(found.sets.keys() - wanted.keys()):
        world.infra.delete(key)
    running = {key: len(hosts) for key, hosts in found.sets.items()}
    for deployment in cast("Any", shrinking_first)(wanted.values(), running):
        world.infra.apply(deployment)
    world.lost.discard(region)
    world.lost_after[region] = world.journal.newest
    for model in sorted({key.model for key in wanted}):
        reconciliation.record_repair(world, model)
    world.invariants.excuses.strained.update(world.entities)
    world.invariants.answers.sent.clear()
    world.requests.replan()


def _sent_to(record: Any, region: str) -> frozenset[int]:
    """Generations of a region that the stored tables of other regions send users to."""
    others = (table for table in record.tables.values() if table.region != region)
    return frozenset(s.generation for t in others for s in t.shares if s.to == region and s.fraction > 0)


def _fail_over(world: Any, model: str) -> None:
    record, lost = world.journal.records[model], world.out.lost
    now = {region: table.shares for region, table in record.tables.items()}
    new = send_around(world, model, now, _list_able(world, model))
    changed = {region for region, shares in new.items() if shares != now[region]}
    targets = {share.to for region in changed for share in new[region] if share.fraction > 0}
    for region, table in sorted(record.tables.items()):
        gateway = world.infra.regions[region]
        ahead = region in targets and gateway.routes.get(model, (0, ()))[0] > table.revision
        if not (region in changed or ahead) or not (region in lost or world.infra.reachable(region)):
            continue
        revision = max(table.revision, gateway.routes.get(model, (0, ()))[0]) + 1
        world.invariants.excuses.strained.add(
            model
        )  # a transition may have been planned after the loss, and before this
        record.tables[region] = Table(region, revision, new[region], table.served)
        if region not in lost:
            world.invariants.pace.check_failover(
                model, region, gateway.routes.get(model, (0, ()))[1], table.shares, new[region]
            )
            gateway.routes[model], gateway.served[model] = (revision, new[region]), table.served


def _list_able(world: Any, model: str) -> Sequence[Survivor]:
    """By what is ready now; where nothing is, by what is wanted; only where the router knows the generation."""
    record, held = world.journal.records[model], tuple(world.journal.records[model].deployments.values())
    for ready in (_count_ready(world, model), None):
        found = [
            able
            for able in list_survivors(world, model, held, ready)
            if able.region in record.tables and able.generation in record.tables[able.region].served
        ]
        if any(able.qps > 0 for able in found):
            return found
    return ()


def _count_ready(world: Any, model: str) -> Mapping[tuple[Key, int], int]:
    states, _ = world.infra.observe(model, set(world.infra.regions) - world.out.lost)
    return Counter((host.key, number) for state in states.values() for host in state.replicas for number in host.ready)


def _is_named(world: Any, region: str) -> bool:
    return any(
        share.to == region and share.fraction > 0
        for record in world.journal.records.values()
        for table in record.tables.values()
        for share in table.shares
    )
