"""What a host shall hold: from a deployment, and on the way from one set to another. Pure functions."""

from collections.abc import Collection

from ipnext.model.deployment import Deployment, HeldGeneration, HostedSnapshot, HostHolds


def host_holds(deployment: Deployment) -> HostHolds:
    """What each host of a deployment shall hold."""
    return HostHolds(
        holds=tuple(
            HostedSnapshot(
                model=deployment.key.model,
                part=deployment.key.part,
                engine=deployment.engine,
                snapshot=held.snapshot,
                digest=held.digest,
                uri=held.uri,
                generations=tuple(sorted(held.generations)),
                settings=deployment.settings,
            )
            for held in sorted(deployment.holds, key=lambda held: held.snapshot)
        )
    )


def generations(holds: HostHolds) -> frozenset[int]:
    """All generations that are held."""
    return frozenset(generation for held in holds.holds for generation in held.generations)


def with_both(told: HostHolds, wanted: HostHolds) -> HostHolds:
    """Everything of `wanted`, and what `told` holds beyond it: new snapshots load while old ones still answer.

    A generation has one snapshot, the one that `wanted` gives it.
    """
    merged = {held.snapshot: held for held in wanted.holds}
    settled = generations(wanted)
    for held in told.holds:
        extra = {generation for generation in held.generations if generation not in settled}
        if extra:
            kept = merged.get(held.snapshot, held.model_copy(update={"generations": ()}))
            both = tuple(sorted({*kept.generations, *extra}))
            merged[held.snapshot] = kept.model_copy(update={"generations": both})
    return HostHolds(holds=tuple(merged[number] for number in sorted(merged)))


def without(holds: HostHolds, snapshots: Collection[int]) -> HostHolds:
    """The holds less some snapshots."""
    return HostHolds(holds=tuple(held for held in holds.holds if held.snapshot not in snapshots))


def routable(ready: tuple[HeldGeneration, ...], wanted: HostHolds) -> tuple[int, ...]:
    """Generations that a host has ready and is meant to answer for, ascending."""
    meant = generations(wanted)
    return tuple(sorted({held.generation for held in ready} & meant))
