"""Plans safe waves from one state of the fleet to another. Called by the transition activity and the command.

Hot swaps come first, in place (`planner.transition.hot_swap`). Then each model moves along the straight line to its
target (`planner.transition.paths`), all in parallel as far as the supply allows (`planner.transition.wave_scheduler`).
If no heuristic brings all models to their targets, the following is tried in this order: every order of the steps of a
few models, tight ends, detours through units that are free elsewhere, dips that the owner allows. Otherwise the
transition is refused, with the waits between models, and the surge or the dip it would cost. Every returned transition
has passed `check_transition`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ipnext.model.planning.admission import Admission
from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import Dip, FleetState, SurgeItem, Transition
from planner.core.step_policy import StepPolicy
from planner.transition.gateway_surge import add_surge
from planner.transition.hot_swap import Swapped, compute_swaps
from planner.transition.input_checks import check_names
from planner.transition.instance import Floats, TransitionInstance
from planner.transition.model_state import ModelState, group_by_model, to_fleet_state
from planner.transition.searches.detour import add_detours
from planner.transition.searches.dip_search import Dipped, search_dips
from planner.transition.searches.order_search import search_order
from planner.transition.searches.shortage import NAMED, compute_shortage, describe_waits, join_names, with_surge
from planner.transition.searches.split_moves import piecewise
from planner.transition.searches.trim import DipKey, lean, lean_with_surge
from planner.transition.trajectory import Trajectory, list_surge
from planner.verify.plan_checker import rules_of
from planner.verify.transition_checker import check_state, check_transition

__all__ = ["StepPolicy", "admit", "check_transition", "plan_transition"]

EFFORT = 600_000.0
"""For the searches that run when models are stuck, and again for the dips, in copies evaluated (about a second on one core)."""
PROBED_MODELS = 50
"""Stuck models up to which a refusal searches for the least surge in several ways, and reports the dip that would suffice."""


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
        return _refuse(origin, to, f"the target breaks {'; '.join(rules_of(broken))}")
    planning = _Planning(problem, origin, to, policies)
    begun = compute_swaps(planning.instance, planning.origin, planning.to)
    if begun.waves:
        planning = _Planning(problem, to_fleet_state(begun.states), to, policies)
    found = planning.find_course()
    if found is None:
        transition, admission = planning.build_refusal()
        return transition.model_copy(update={"origin": origin}), admission
    transition, admission = _with_swaps(begun, origin, *planning.written(found))
    ways = {policy.refresh for policy in planning.instance.policies.values()}
    if len(ways) == 1:
        transition = transition.model_copy(update={"refresh": ways.pop()})
    wrong = check_transition(problem, transition, policies)
    if wrong:
        return _refuse(origin, to, f"the waves would break {'; '.join(rules_of(wrong))}")
    return transition, admission


def _with_swaps(
    begun: Swapped, origin: FleetState, transition: Transition, admission: Admission
) -> tuple[Transition, Admission]:
    """Prepend the swaps from `origin` to the remaining waves."""
    if not begun.waves:
        return transition, admission
    waves = (*begun.waves, *transition.waves)
    whole = transition.model_copy(update={"origin": origin, "waves": waves, "swaps": begun.swaps})
    return whole, admission.model_copy(update={"swaps": begun.swaps})


def _refuse(
    origin: FleetState,
    to: FleetState,
    reason: str,
    *,
    surge: tuple[SurgeItem, ...] = (),
    dips: tuple[Dip, ...] = (),
    waits_for: tuple[str, ...] = (),
) -> tuple[Transition, Admission]:
    admission = Admission(feasible=False, mode="refused", surge=surge, dips=dips, waits_for=waits_for, reason=reason)
    return Transition(origin=origin, to=to, surge=surge, refused=reason), admission


class _Planning:
    def __init__(
        self, problem: Problem, state: FleetState, goal: FleetState, policies: Mapping[str, StepPolicy]
    ) -> None:
        self.state, self.goal = state, goal
        self.origin = group_by_model(state)
        self.to = {**dict.fromkeys(self.origin, ModelState()), **group_by_model(goal)}
        self.instance = TransitionInstance(problem, policies, self.origin)
        self.start = Trajectory.begin(self.instance, self.origin)
        self.blocked = self.start

    def find_course(self) -> Dipped | None:
        """Return a trajectory to the end, without a dip if there is one."""
        self.blocked = self.start.advance(self.to)
        if not self.blocked.pending_models(self.to):
            return Dipped(self.blocked, {})
        self.instance.effort = EFFORT
        begins = [self.blocked, self.start] if self.blocked.schedules else [self.start]
        for begin in begins:
            for way in (search_order, lean, piecewise, add_detours):
                trajectory = way(begin, self.to)
                if not trajectory.pending_models(self.to):
                    return Dipped(trajectory, {})
        return self._with_dips(begins, self._allowed_dips())

    def _allowed_dips(self) -> dict[str, float]:
        policies = {m: self.instance.policy_of(m) for m in self.blocked.pending_models(self.to)}
        return {m: policy.max_dip for m, policy in policies.items() if policy.when_short == "dip"}

    def _with_dips(self, begins: Sequence[Trajectory], most: Mapping[str, float]) -> Dipped | None:
        """Return the smaller of the dips from these beginnings."""
        if not any(most.values()):
            return None
        self.instance.effort = EFFORT
        found = [search_dips(begin, self.origin, self.to, most) for begin in begins]
        return min((d for d in found if d is not None), key=lambda d: max(d.dips.values(), default=0.0), default=None)

    def written(self, found: Dipped) -> tuple[Transition, Admission]:
        """Return the waves of a trajectory to the end, with temporary replicas while gateways follow one by one."""
        heights = list(found.trajectory.units_by_wave(self.origin))
        crossing = add_surge(self.instance, self.origin, tuple(found.trajectory.waves()), heights)
        peaks = [self.start.used_units(), *(units + crossing.units.get(n, 0.0) for n, units in enumerate(heights))]
        surge, dips = list_surge(self.instance, np.max(peaks, axis=0) - self._ends()), _dip_rows(found.dips)
        transition = Transition.model_construct(
            origin=self.state, to=self.goal, waves=crossing.waves, surge=surge, dips=dips, refused=None
        )
        mode: Literal["as is", "surge", "dip"] = "dip" if dips else "surge" if surge else "as is"
        return transition, Admission(feasible=True, mode=mode, surge=surge, dips=dips)

    def _beyond(self, trajectory: Trajectory) -> Floats:
        """Return (R,) units of a trajectory beyond the larger of the two states."""
        return trajectory.peak_units(self.origin) - self._ends()

    def _ends(self) -> Floats:
        """Return (R,) units of the larger of the two states."""
        return np.maximum(self.start.used_units(), self.instance.total_units(self.to))

    def _missing_units(self, trajectory: Trajectory) -> float:
        return float((trajectory.peak_units(self.origin) - self.instance.limits).clip(min=0.0).sum())

    def build_refusal(self) -> tuple[Transition, Admission]:
        """Return the refusal: the waits between models, the surge that would suffice, and the dip it would cost instead."""
        pending, waits = self.blocked.pending_models(self.to), list(compute_shortage(self.blocked, self.to).waits())
        many = len(pending) > PROBED_MODELS
        begins = (self.blocked,) if many else (self.blocked, self.start)
        ways = [
            way(begin, self.to)
            for begin in begins
            for way in ((with_surge,) if many else (with_surge, lean_with_surge))
        ]
        trajectory = min(ways, key=self._missing_units)
        short = list_surge(self.instance, trajectory.peak_units(self.origin) - self.instance.limits)
        needs = " and ".join(f"{item.units:.9g} units more of {item.region}/{item.hardware}" for item in short)
        dips = self._dips_instead(pending)
        reason = f"supply: {join_names(pending)} cannot move: {describe_waits(waits)}; a surge of {needs} than there are would do"
        reason += f", or {_describe_dips(dips)}" if dips else ""
        if any(self.instance.policy_of(m).when_short == "wait" for m in pending):
            reason += f"; waits until {needs} are free"
        holders = {holder for wait in waits for holder in wait.holders}
        surge = list_surge(self.instance, self._beyond(trajectory))
        return _refuse(self.state, self.goal, reason, surge=surge, dips=dips, waits_for=tuple(sorted(holders)))

    def _dips_instead(self, pending: Sequence[str]) -> tuple[Dip, ...]:
        """Return the dips without a surge, whatever the owners allow; empty if none was found or too many models are stuck."""
        if len(pending) > PROBED_MODELS:
            return ()
        found = self._with_dips([self.start], dict.fromkeys(pending, 1.0))
        return () if found is None else _dip_rows(found.dips)


def _dip_rows(dips: Mapping[DipKey, float]) -> tuple[Dip, ...]:
    """Round dips up, so that a stated dip is never less than the actual one."""
    return tuple(
        Dip.from_trusted(model, part, region, min(1.0, math.ceil(fraction * 1e9) / 1e9))
        for (model, part, region), fraction in sorted(dips.items())
    )


def _describe_dips(dips: Sequence[Dip]) -> str:
    shown = [f"{dip.fraction:.3g} of {dip.model}/{dip.part} in {dip.region}" for dip in dips[:NAMED]]
    more = f" and {len(dips) - NAMED} more" if len(dips) > NAMED else ""
    return f"a dip of {', '.join(shown)}{more}"
