"""The progress of a model's traffic through the waves of a transition, for people who watch one. Pure."""

from collections.abc import Mapping, Sequence

from ipnext.model.planning.transition import FleetState, GenerationShare, Share, Transition

Answers = Mapping[tuple[str, int], float]
"""Fraction of one region's users by the region and the generation that answer them."""


def measure_arrival(transition: Transition, model: str) -> tuple[Mapping[str, float], ...]:
    """Return, for each wave, users' region -> the fraction that reaches its target once the wave's routes apply."""
    now, goal = _by_users(transition.origin, model), _by_users(transition.to, model)
    found = []
    for wave in transition.waves:
        now |= {change.origin: _answers(change.shares) for change in wave.route if change.model == model}
        found.append({origin: _overlap(now.get(origin, {}), wanted) for origin, wanted in goal.items()})
    return tuple(found)


def arrived_words(fractions: Mapping[str, float]) -> str:
    """Return `60%` if all regions have the same fraction, else each: `40% of eu-west, 100% of us-east`."""
    shown = {origin: f"{fraction:.4g}%" for origin, fraction in ((o, 100 * f) for o, f in sorted(fractions.items()))}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{fraction} of {origin}" for origin, fraction in shown.items()) or "none"


def _by_users(state: FleetState, model: str) -> dict[str, Answers]:
    origins = dict.fromkeys(share.origin for share in state.traffic if share.model == model)
    return {o: _answers([s for s in state.traffic if (s.model, s.origin) == (model, o)]) for o in origins}


def _answers(shares: Sequence[Share | GenerationShare]) -> Answers:
    found: dict[tuple[str, int], float] = {}
    for share in shares:
        found[share.to, share.generation] = found.get((share.to, share.generation), 0.0) + share.fraction
    return found


def _overlap(now: Answers, goal: Answers) -> float:
    return sum(min(now.get(place, 0.0), fraction) for place, fraction in goal.items())
