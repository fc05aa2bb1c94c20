"""What a host shall hold: from a deployment, and on the way from one set to another. Pure functions."""

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
    """Everything of `wanted`, and what `told` holds beyond it: new snapshots load while old ones still answer."""
    old = {held.snapshot: held for held in told.holds}
    merged = {held.snapshot: held for held in wanted.holds}
    for number, held in old.items():
        new = merged.get(number)
        if new is None:
            merged[number] = held
        else:
            both = tuple(sorted({*new.generations, *held.generations}))
            merged[number] = new.model_copy(update={"generations": both})
    return HostHolds(holds=tuple(merged[number] for number in sorted(merged)))


def routable(ready: tuple[HeldGeneration, ...], wanted: HostHolds) -> tuple[int, ...]:
    """Generations that a host has ready and is meant to answer for, ascending."""
    meant = generations(wanted)
    return tuple(sorted({held.generation for held in ready} & meant))
