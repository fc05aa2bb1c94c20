"""What a host shall hold: from a deployment, and on the way from one set to another. Pure functions."""

from collections.abc import Collection

from ipnext.model.deployment import Deployment, HeldGeneration, HostedSnapshot, HostHolds


def host_holds(deployment: Deployment) -> HostHolds:
    """What each host of a deployment shall hold."""
    return HostHolds(
        holds=tuple(
            HostedSnapshot(
                model=deployment.key.model,
                part=held.part or deployment.key.part,
                engine=deployment.engine,
                snapshot=held.snapshot,
                digest=held.digest,
                uri=held.uri,
                generations=tuple(sorted(held.generations)),
                settings=deployment.settings,
            )
            for held in sorted(deployment.holds, key=lambda held: (held.part or "", held.snapshot))
        )
    )


def generations(holds: HostHolds) -> frozenset[int]:
    """All generations that are held."""
    return frozenset(generation for held in holds.holds for generation in held.generations)


def with_both(told: HostHolds, wanted: HostHolds) -> HostHolds:
    """Everything of `wanted`, and what `told` holds beyond it: new snapshots load while old ones still answer.

    A generation of a part or segment has one snapshot, the one that `wanted` gives it.
    """
    merged = {(held.part, held.snapshot): held for held in wanted.holds}
    settled = _pairs(wanted)
    for held in told.holds:
        extra = {generation for generation in held.generations if (held.part, generation) not in settled}
        if extra:
            key = (held.part, held.snapshot)
            kept = merged.get(key, held.model_copy(update={"generations": ()}))
            both = tuple(sorted({*kept.generations, *extra}))
            merged[key] = kept.model_copy(update={"generations": both})
    return HostHolds(holds=tuple(merged[key] for key in sorted(merged)))


def without(holds: HostHolds, snapshots: Collection[tuple[str, int]]) -> HostHolds:
    """The holds less some snapshots, each named by part or segment and number."""
    return HostHolds(holds=tuple(held for held in holds.holds if (held.part, held.snapshot) not in snapshots))


def routable(ready: tuple[HeldGeneration, ...], wanted: HostHolds) -> tuple[int, ...]:
    """Generations that a host is meant to answer for and of which it has all that it shall hold, ascending."""
    lacking = _pairs(wanted) - {(held.part, held.generation) for held in ready}
    return tuple(sorted(generations(wanted) - {generation for _, generation in lacking}))


def pieces(holds: HostHolds, ready: Collection[int]) -> dict[str, tuple[int, ...]]:
    """Part or segment -> those of the generations in `ready` that a graph may call it for; each that is held stands there."""
    found: dict[str, set[int]] = {}
    for held in holds.holds:
        found.setdefault(held.part, set()).update(g for g in held.generations if g in ready)
    return {part: tuple(sorted(numbers)) for part, numbers in found.items()}


def _pairs(holds: HostHolds) -> frozenset[tuple[str, int]]:
    return frozenset((held.part, generation) for held in holds.holds for generation in held.generations)
