"""Shares of users' regions that a model's state asks for; users of lost regions go to the remaining ones."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from activities.state.desired import DesiredFacts
from activities.state.routes.failover_shares import Nearness, Survivor, without_regions
from activities.state.routes.served_generations import list_hosted, served_generations
from activities.state.wave_state import ModelWaveState
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.deployment.served_generation import ServedGeneration


def wanted_shares(
    facts: DesiredFacts,
    state: ModelWaveState,
    deployments: Iterable[Deployment],
    *,
    unready: Collection[tuple[str, int]] = (),
) -> dict[str, tuple[RouteShare, ...]]:
    """Return the shares of every region that has demand, hosts the model or had a table before.

    A region without demand that hosts the model answers its users itself. Traffic for a lost region goes to the
    remaining ones. Neither goes to an `unready` (region, generation). A region with demand that no region serves has no
    shares: its gateway refuses its users.
    """
    deployments = tuple(deployments)
    hosting = {deployment.key.region for deployment in deployments if deployment.replicas}
    regions = hosting | state.shares.keys() | facts.tables.keys() | facts.unmet_rules.keys()
    main = _main_generation(state)
    shares = {region: state.shares.get(region, ()) for region in sorted(regions)}
    demanding = {item.region for item in facts.manifest.spec.demand}
    for region in hosting - demanding:
        complete = {served.generation for served in served_generations(facts, region, deployments)}
        if not shares[region] and main in complete and (region, main) not in unready:
            shares[region] = (RouteShare(to=region, generation=main, fraction=1.0),)
    able = [found for found in survivors(facts, deployments) if (found.region, found.generation) not in unready]
    return fail_over(facts, shares, able)


def fail_over(
    facts: DesiredFacts, shares: Mapping[str, tuple[RouteShare, ...]], able: Sequence[Survivor]
) -> dict[str, tuple[RouteShare, ...]]:
    """Return shares without lost regions, over those that are `able`."""
    demand = {item.region: item.amount for item in facts.manifest.spec.demand}
    nearness = Nearness(facts.rtt_ms, facts.manifest.spec.latency_tolerance_ms)
    return without_regions(shares, facts.lost, able, demand=demand, nearness=nearness, serving=facts.serving)


def survivors(
    facts: DesiredFacts, deployments: Iterable[Deployment], ready: Mapping[tuple[DeploymentKey, int], int] | None = None
) -> tuple[Survivor, ...]:
    """Return every whole generation of every remaining region, with the throughput of its slowest part.

    By the desired replicas, or by those that are `ready` (replica set, generation -> count). The latter include
    replicas that are to swap from the serving generation, and have not left it.
    """
    if not facts.lost:
        return ()
    held = tuple(deployments)
    leaving = frozenset(_leaving(facts.serving, held, ready or {}))
    regions = {deployment.key.region for deployment in held} - facts.lost
    return tuple(
        Survivor(region, served.generation, _throughput(facts, served, region, held, ready))
        for region in sorted(regions)
        for served in served_generations(facts, region, held, leaving=leaving)
    )


def _leaving(
    serving: int | None, deployments: Iterable[Deployment], ready: Mapping[tuple[DeploymentKey, int], int]
) -> Iterator[tuple[DeploymentKey, int]]:
    """Yield replica sets that are to swap from the serving generation, with it, if replicas are ready for it."""
    for found in deployments:
        if serving is not None and found.swap and found.replicas and ready.get((found.key, serving), 0) > 0:
            yield found.key, serving


def _throughput(
    facts: DesiredFacts,
    served: ServedGeneration,
    region: str,
    deployments: Iterable[Deployment],
    ready: Mapping[tuple[DeploymentKey, int], int] | None,
) -> float:
    """Return the throughput of a generation in a region, in the model's unit: that of its slowest part."""
    number = served.generation
    able = dict.fromkeys(list_hosted(served.graph, facts.generations[number]), 0.0)
    for found in deployments:
        if found.key.region == region and found.key.part in able:
            count = found.replicas_of(number) if ready is None else ready.get((found.key, number), 0)
            able[found.key.part] += count * found.qps
    return min(able.values(), default=0.0)


def _main_generation(state: ModelWaveState) -> int:
    """Return the generation with the most traffic; 0 if there is none."""
    weights: dict[int, float] = {}
    for shares in state.shares.values():
        for share in shares:
            weights[share.generation] = weights.get(share.generation, 0.0) + share.fraction
    return max(weights, key=lambda generation: (weights[generation], generation), default=0)
