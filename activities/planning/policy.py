"""Policy of every plan: weights, limits, when a new plan is worth its moves, and the number of plans kept."""

from dataclasses import dataclass

from ipnext.model.planning.plan import Limits, Objective
from ipnext.settings import PlatformSettings

OBJECTIVE = Objective(latency_weight=0.0001, move_cost=0.05, unmet_cost=10.0)

REPLAN_LIMITS = Limits(time_seconds=60.0, gap=0.01)

PLACE_LIMITS = Limits(time_seconds=20.0, gap=0.01)
"""One model on the capacity that the others leave: seconds at most, not minutes."""


@dataclass(frozen=True, kw_only=True)
class PlanningPolicy:
    """Planning policy. The defaults are those of `ipnext.settings`, which documents them; a test compares them."""

    objective: Objective = OBJECTIVE
    replan_limits: Limits = REPLAN_LIMITS
    place_limits: Limits = PLACE_LIMITS
    dead_band: float = 0.02
    """Share of the plan's cost that a new one must save."""
    kept_plans: int = 50
    window: int = 16
    """Models of a replan that move at a time."""
    owner_replicas: int = 2000
    """Replicas that an owner may ask for without a quota of them."""

    @classmethod
    def of(cls, settings: PlatformSettings) -> "PlanningPolicy":
        """Return the policy of a platform's settings."""
        return cls(
            objective=Objective(
                latency_weight=settings.latency_weight, move_cost=settings.move_cost, unmet_cost=settings.unmet_cost
            ),
            replan_limits=Limits(
                max_moves=settings.replan_max_moves, time_seconds=settings.replan_time_seconds, gap=settings.replan_gap
            ),
            dead_band=settings.replan_dead_band,
            kept_plans=settings.kept_plans,
            window=settings.replan_window,
            owner_replicas=settings.owner_replicas,
        )
