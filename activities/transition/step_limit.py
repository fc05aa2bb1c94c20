"""Limits how fast users reach a new generation after traffic failed over from a lost region.

Pure functions of the waves, and of the gateways' current and next shares. Called by `activities.transition.activities`.
"""

from collections.abc import Collection, Iterable, Mapping

from activities.state.desired import DesiredFacts
from activities.state.wave_state import ModelWaveState, state_at, state_of
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from ipnext.model.lifecycle.failure_cause import Place
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.rollout import RolloutSpec
from ipnext.model.planning.transition import Transition

ROUNDING = 1e-6
"""Growth of a share that counts as rounding."""

Shares = Mapping[str, tuple[RouteShare, ...]]
"""By users' region."""


def check_growth(
    facts: DesiredFacts, transition: Transition, index: int, shares: Shares, rollout: RolloutSpec
) -> WaveResult | None:
    """Explain why wave `index` may not send by `shares`, so that the run is reverted; None if it may.

    A wave continues from the shares of the wave before. If no remaining region held the new generation, its users were
    sent back to the former one meanwhile, and the next wave would bring all of them at once.
    """
    most = rollout.max_step if index else rollout.canary
    found = find_growth(facts, transition, index, shares, most)
    if not found:
        return None
    origin, fraction = max(found.items(), key=lambda item: (item[1], item[0]))
    message = (
        f"users were sent around a region that was lost on the way; {fraction:.0%} of those of {origin} would come to "
        f"the new generation at once, and {most:.0%} may"
    )
    return WaveResult(ok=False, reason=Reason.REGION_UNREACHABLE, message=message, place=Place(region=origin))


def find_growth(
    facts: DesiredFacts, transition: Transition, index: int, shares: Shares, most: float
) -> Mapping[str, float]:
    """Users' region -> fraction of its requests that newly reach a new generation, if that is more than `most`.

    The growth that the wave was planned to bring is never too much. Nor is any for users whom no remaining region
    answers now: any ready generation may.
    """
    former = {share.generation for share in transition.origin.traffic}
    before, after = _before(transition, facts.model, index), state_at(transition, facts.model, index, "routed")
    found: dict[str, float] = {}
    for origin, planned in after.shares.items():
        table = facts.tables.get(origin)
        now = [s for s in table.shares if s.fraction > 0 and s.to not in facts.lost] if table else []
        grows = _new(shares.get(origin, ()), former) - _new(now, former)
        means = _new(planned, former) - _new(before.shares.get(origin, ()), former)
        if now and grows > max(most, means) + ROUNDING:
            found[origin] = grows
    return found


def _before(transition: Transition, model: str, index: int) -> ModelWaveState:
    if index:
        return state_at(transition, model, index - 1, "routed")
    return state_of(transition.origin, model, apart=transition.apart)


def _new(shares: Iterable[RouteShare], former: Collection[int]) -> float:
    """Sum the fractions of generations that are not `former` ones."""
    return sum(share.fraction for share in shares if share.generation not in former)
