"""What a transition costs, said before it starts: whether it may go, what it takes beyond both states, what it lacks."""

from typing import Literal

from ipnext.model.rollout import Dip, SurgeItem, Swap
from ipnext.model.value import Value


class Admission(Value):
    """The answer to "may it start, and at what price?". The owner's policy has been applied already.

    `mode`: `as is` takes nothing beyond the larger of the two states; `surge` takes the units of `surge` for a while, and
    they are there; `dip` goes below the traffic by `dips`, as the policy allows; `refused` does not start.
    """

    feasible: bool
    mode: Literal["as is", "surge", "dip", "refused"]
    surge: tuple[SurgeItem, ...] = ()
    """Units beyond the larger of the two states. When refused: those that the smallest steps found would take."""
    dips: tuple[Dip, ...] = ()
    """What the waves miss against the traffic. When refused: what they would miss instead of the surge, where known."""
    swaps: tuple[Swap, ...] = ()
    """What goes over to another generation where it stands, and what is missing of its traffic meanwhile."""
    waits_for: tuple[str, ...] = ()
    """Models that hold what the stuck ones need, sorted. When refused only."""
    reason: str = ""
    """Why it is refused; empty otherwise."""
