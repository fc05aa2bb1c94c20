"""Plans safe waves from one state of the fleet to another. For the transition activity and the command.

1. Hot swaps, in place (`planner.transition.hot_swap`).
2. All models advance along the straight path to their targets, in parallel as far as the supply allows
   (`planner.transition.trajectory`).
3. If models are blocked, the searches of the ladder (`build_ladder`), in its order, until one reaches the goal.
4. Replicas that are missing only while gateways follow one by one (`planner.transition.gateway_surge`).

Without a way the transition is refused, with the waits between models, and the surge or the dip that would be enough
(`planner.transition.refusal`). Every returned transition has passed `check_transition`.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from ipnext.model.planning.admission import Admission
from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import FleetState, Transition
from planner.core.step_policy import StepPolicy
from planner.transition.gateway_surge import add_surge
from planner.transition.hot_swap import SwapPlan, plan_swaps
from planner.transition.input_checks import check_names
from planner.transition.instance import Floats, TransitionInstance
from planner.transition.model_state import ModelState, group_by_model, to_fleet_state
from planner.transition.refusal import list_dips, refuse, refuse_blocked
from planner.transition.searches.detour import DetourSearch
from planner.transition.searches.dip_search import DipSearch
from planner.transition.searches.order_search import OrderSearch
from planner.transition.searches.search import Rung
from planner.transition.searches.split_moves import SplitMoveSearch
from planner.transition.searches.surge_search import SurgeSearch, TightSurgeSearch
from planner.transition.searches.trim import NO_DIPS, TightEndSearch
from planner.transition.trajectory import Goal, Trajectory, list_surge
from planner.verify.plan_checker import rules_of
from planner.verify.transition_checker import check_state, check_transition

__all__ = ["StepPolicy", "admit", "check_transition", "plan_transition"]

MAX_PROBED = 50
"""Blocked models up to which a refusal searches for the least surge in several ways, and for the dip instead of it."""
SURGE = SurgeSearch(max_lifts=100, max_alone=8, effort=50_000)


def build_ladder(allowed_dips: Mapping[str, float]) -> tuple[Rung, ...]:
    """Return the searches in their order, each with its limits; `allowed_dips` is model -> the largest fraction.

    The effort of a rung is about a second on one core.
    """
    return (
        Rung(
            effort=600_000,
            searches=(
                OrderSearch(max_models=8, max_steps=400, max_positions=20_000),
                TightEndSearch(NO_DIPS),
                SplitMoveSearch(max_moves=20, max_models=20),
                DetourSearch(max_detours=6, max_tried=24),
            ),
        ),
        build_dip_rung(allowed_dips),
    )


def build_dip_rung(allowed_dips: Mapping[str, float]) -> Rung:
    """Return the last rung. A refusal climbs it alone, for the dips that would be enough whatever the owners allow."""
    return Rung(effort=600_000, searches=(DipSearch(allowed_dips, max_spared=12),))


def plan_transition(
    problem: Problem, origin: FleetState, to: FleetState, policies: Mapping[str, StepPolicy]
) -> Transition:
    """Return waves from `origin` to `to`, or the reason why there are none in `refused`.

    A model without a policy has the default one. In a refused transition `surge` is the units that the waves would need
    beyond the larger of the two states. Raises InvalidInput for names that the problem does not have.
    """
    return admit(problem, origin, to, policies)[0]


def admit(
    problem: Problem, origin: FleetState, to: FleetState, policies: Mapping[str, StepPolicy]
) -> tuple[Transition, Admission]:
    """Return the transition, and its cost or why it does not start. Raises InvalidInput as `plan_transition`."""
    check_names(problem, origin, "from")
    check_names(problem, to, "to")
    broken = check_state(problem, to, origin, policies)
    if broken:
        return refuse(origin, to, f"the target breaks {'; '.join(rules_of(broken))}")
    transition, admission = plan_unchecked(problem, origin, to, policies)
    wrong = check_transition(problem, transition, policies) if transition.refused is None else ()
    if wrong:
        return refuse(origin, to, f"the waves would break {'; '.join(rules_of(wrong))}")
    return transition, admission


def plan_unchecked(
    problem: Problem, origin: FleetState, to: FleetState, policies: Mapping[str, StepPolicy]
) -> tuple[Transition, Admission]:
    """Return the transition of a valid target, before the check of its waves, and its admission."""
    start, goal = _read_ends(problem, origin, to, policies)
    swaps = plan_swaps(start.instance, start.states, goal)
    if swaps.waves:
        start, goal = _read_ends(problem, to_fleet_state(swaps.states), to, policies)
    blocked = start.advance(goal)
    found = climb_ladder(start, blocked, goal)
    if found is None:
        return _refuse_blocked((origin, to), start, blocked, goal)
    return _write_transition((origin, to), swaps, start, found, goal)


def climb_ladder(start: Trajectory, blocked: Trajectory, goal: Goal) -> Trajectory | None:
    """Return the first trajectory to the goal. Every search starts from the blocked state and from the start."""
    pending = blocked.pending_models(goal)
    if not pending:
        return blocked
    policies = {model: blocked.instance.policy_of(model) for model in pending}
    allowed_dips = {model: policy.max_dip for model, policy in policies.items() if policy.when_short == "dip"}
    begins = [blocked, start] if blocked.schedules else [start]
    ways = (rung.climb(begins, goal) for rung in build_ladder(allowed_dips))
    return next((way for way in ways if way is not None), None)


def _read_ends(
    problem: Problem, origin: FleetState, to: FleetState, policies: Mapping[str, StepPolicy]
) -> tuple[Trajectory, Goal]:
    """Return the trajectory before its first wave, and the state that each model has to reach."""
    states = group_by_model(origin)
    goal = {**dict.fromkeys(states, ModelState()), **group_by_model(to)}
    return Trajectory.begin(TransitionInstance(problem, policies, states), states), goal


def _write_transition(
    ends: tuple[FleetState, FleetState], swaps: SwapPlan, start: Trajectory, found: Trajectory, goal: Goal
) -> tuple[Transition, Admission]:
    """Return the waves: the swaps, then those of a trajectory, with replicas added while gateways follow one by one."""
    origin, to = ends
    units = list(found.units_by_wave())
    reinforced = add_surge(found.instance, found.origin, tuple(found.waves()), units)
    peaks = [start.used_units(), *(used + reinforced.units.get(n, 0.0) for n, used in enumerate(units))]
    surge = list_surge(found.instance, np.max(peaks, axis=0) - _measure_ends(start, goal))
    dips = list_dips(found.dips)
    ways = {policy.refresh for policy in found.instance.policies.values()}
    transition = Transition.model_construct(
        origin=origin,
        to=to,
        waves=(*swaps.waves, *reinforced.waves),
        surge=surge,
        dips=dips,
        swaps=swaps.swaps,
        refused=None,
        refresh=ways.pop() if len(ways) == 1 else "in_place",
    )
    mode: Literal["as is", "surge", "dip"] = "dip" if dips else "surge" if surge else "as is"
    return transition, Admission(feasible=True, mode=mode, surge=surge, dips=dips, swaps=swaps.swaps)


def _refuse_blocked(
    ends: tuple[FleetState, FleetState], start: Trajectory, blocked: Trajectory, goal: Goal
) -> tuple[Transition, Admission]:
    """Return the refusal, with the smallest surge and the smallest dip that are found to be enough."""
    pending = blocked.pending_models(goal)
    many = len(pending) > MAX_PROBED
    begins = [blocked] if many else [blocked, start]
    probes: list[SurgeSearch | TightSurgeSearch] = [SURGE] if many else [SURGE, TightSurgeSearch(SURGE)]
    surged = min((probe.improve(begin, goal) for begin in begins for probe in probes), key=_measure_missing)
    dipped = None if many else build_dip_rung(dict.fromkeys(pending, 1.0)).climb([start], goal)
    return refuse_blocked(
        ends,
        blocked,
        goal,
        surged=surged,
        surge=list_surge(start.instance, surged.peak_units() - _measure_ends(start, goal)),
        dips=() if dipped is None else list_dips(dipped.dips),
    )


def _measure_ends(start: Trajectory, goal: Goal) -> Floats:
    """Return (R,) units of the larger of the two states."""
    return np.maximum(start.used_units(), start.instance.total_units(goal))


def _measure_missing(trajectory: Trajectory) -> float:
    """Return the units beyond the supply, over all rows."""
    return float((trajectory.peak_units() - trajectory.instance.limits).clip(min=0.0).sum())
