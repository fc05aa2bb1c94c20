"""Refusals: who waits for whom, the surge that would be enough, and the dip that would be enough instead."""

import math
from collections.abc import Iterator, Mapping, Sequence

from ipnext.model.planning.admission import Admission
from ipnext.model.planning.transition import Dip, FleetState, SurgeItem, Transition
from planner.transition.model_state import DipKey
from planner.transition.searches.shortage import Wait, compute_shortage
from planner.transition.trajectory import Goal, Trajectory, list_surge

MAX_NAMED = 5
"""Models that a sentence names at most."""


def refuse(
    origin: FleetState,
    to: FleetState,
    reason: str,
    *,
    surge: tuple[SurgeItem, ...] = (),
    dips: tuple[Dip, ...] = (),
    waits_for: tuple[str, ...] = (),
) -> tuple[Transition, Admission]:
    """Return a transition without waves, and its admission, with the reason."""
    admission = Admission(feasible=False, mode="refused", surge=surge, dips=dips, waits_for=waits_for, reason=reason)
    return Transition(origin=origin, to=to, surge=surge, refused=reason), admission


def refuse_blocked(
    ends: tuple[FleetState, FleetState],
    blocked: Trajectory,
    goal: Goal,
    *,
    surged: Trajectory,
    surge: tuple[SurgeItem, ...],
    dips: tuple[Dip, ...],
) -> tuple[Transition, Admission]:
    """Return the refusal of a transition in which models are blocked.

    `surged` reaches the goal beyond the supply; `surge` is what it uses beyond the larger of the two states. `dips` are
    enough instead, or empty.
    """
    instance, pending = blocked.instance, blocked.pending_models(goal)
    waits = list(compute_shortage(blocked, goal).waits())
    short = list_surge(instance, surged.peak_units() - instance.limits)
    needs = " and ".join(f"{item.units:.9g} units more of {item.region}/{item.hardware}" for item in short)
    reason = f"supply: {join_names(pending)} cannot move: {describe_waits(waits)}"
    reason += f"; a surge of {needs} than there are would do"
    reason += f", or {_describe_dips(dips)}" if dips else ""
    if any(instance.policy_of(m).when_short == "wait" for m in pending):
        reason += f"; waits until {needs} are free"
    holders = {holder for wait in waits for holder in wait.holders}
    return refuse(*ends, reason, surge=surge, dips=dips, waits_for=tuple(sorted(holders)))


def list_dips(dips: Mapping[DipKey, float]) -> tuple[Dip, ...]:
    """Round dips up, so that a stated dip is never less than the actual one."""
    return tuple(
        Dip.from_trusted(model, part, region, min(1.0, math.ceil(fraction * 1e9) / 1e9))
        for (model, part, region), fraction in sorted(dips.items())
    )


def _describe_dips(dips: Sequence[Dip]) -> str:
    shown = [f"{dip.fraction:.3g} of {dip.model}/{dip.part} in {dip.region}" for dip in dips[:MAX_NAMED]]
    more = f" and {len(dips) - MAX_NAMED} more" if len(dips) > MAX_NAMED else ""
    return f"a dip of {', '.join(shown)}{more}"


def describe_waits(waits: Sequence[Wait]) -> str:
    """Return `x waits for y (1 units more of b/h), y waits for x (1 units more of a/h)`; a circle if there is one."""
    shown = find_circle(waits) or waits
    more = len(shown) - MAX_NAMED
    return ", ".join(_describe_wait(wait) for wait in shown[:MAX_NAMED]) + (
        f" and {more} more waits" if more > 0 else ""
    )


def find_circle(waits: Sequence[Wait]) -> list[Wait]:
    """Return waits in a circle, each holder waiting in turn back to the first; empty if none was found."""
    of: dict[str, list[Wait]] = {}
    for wait in waits:
        of.setdefault(wait.model, []).append(wait)
    dead: set[str] = set()
    for model in of:
        path = _search_circle(model, of, dead)
        if path:
            return path
    return []


def _search_circle(start: str, of: Mapping[str, list[Wait]], dead: set[str]) -> list[Wait]:
    """Search depth first, without recursion: return the waits from a model back to itself."""
    path: list[tuple[Wait, str]] = []
    at, rest = start, {start: _choices(start, of)}
    while True:
        step = next(rest[at], None)
        if step is None:
            dead.add(at)
            if not path:
                return []
            path.pop()
            at = path[-1][1] if path else start
            continue
        wait, holder = step
        names = [start, *(name for _, name in path)]
        if holder in names:
            return [taken for taken, _ in [*path, step][names.index(holder) :]]
        if holder in of and holder not in dead:
            path.append((wait, holder))
            at, rest[holder] = holder, _choices(holder, of)


def _choices(model: str, of: Mapping[str, list[Wait]]) -> Iterator[tuple[Wait, str]]:
    return ((wait, holder) for wait in of[model] for holder in wait.holders)


def _describe_wait(wait: Wait) -> str:
    whom = f"waits for {join_names(wait.holders)}" if wait.holders else "waits for units that no model frees"
    return f"{wait.model} {whom} ({wait.units:.9g} units more of {wait.row[0]}/{wait.row[1]})"


def join_names(names: Sequence[str]) -> str:
    """Join the first names, and the number of the rest."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
