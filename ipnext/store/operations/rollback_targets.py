"""Generations that a model may go back to."""

from ipnext.model.registry.registry import Generation, GenerationState
from ipnext.store.repository import Repository

REACHABLE = frozenset({GenerationState.WARM, GenerationState.SERVING, GenerationState.RETIRED})


def kept_generations(unit: Repository, model: str) -> tuple[Generation, ...]:
    """Return the generations whose snapshots' bytes are kept, newest first."""
    gone = unit.collected_snapshots(model)
    return tuple(one for one in unit.generations(model) if not gone & set(one.snapshots.items()))


def denied_generations(unit: Repository, model: str, generations: tuple[Generation, ...]) -> dict[int, str]:
    """Map generations with a denied snapshot to the denial's description."""
    denied = unit.denied_snapshots(model)
    found: dict[int, str] = {}
    for generation in generations if denied else ():
        first = next((denied[key] for key in generation.named if key in denied), None)
        if first is not None:
            found[generation.number] = first.text
    return found


def former_generations(generations: tuple[Generation, ...], serving: int | None) -> tuple[int, ...]:
    """Return the generations that have served and do not serve now, newest first."""
    served = (g.number for g in generations if g.serving_at is not None and g.state in REACHABLE)
    return tuple(sorted((number for number in served if number != serving), reverse=True))
