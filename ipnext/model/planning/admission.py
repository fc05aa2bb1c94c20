"""The cost of a transition, stated before it starts: whether it may start, its surge, and its shortfall."""

from typing import Literal

from ipnext.model.planning.transition import Dip, SurgeItem, Swap
from ipnext.model.value import Value


class Admission(Value):
    """The answer to "may it start, and at what price?", after the owner's policy has been applied.

    `mode`: `as is` takes nothing beyond the larger of the two states; `surge` takes the units of `surge` for a while,
    and they are available; `dip` goes below the traffic by `dips`, as the policy allows; `refused` does not start.
    """

    feasible: bool
    mode: Literal["as is", "surge", "dip", "refused"]
    surge: tuple[SurgeItem, ...] = ()
    """Units beyond the larger of the two states. If refused: those that the smallest steps found would take."""
    dips: tuple[Dip, ...] = ()
    """The shortfall of the waves against the traffic. If refused: the shortfall without the surge, if known."""
    swaps: tuple[Swap, ...] = ()
    """Processes that change to another generation in place, and the traffic that they can't answer meanwhile."""
    waits_for: tuple[str, ...] = ()
    """Models that have the supply that the blocked ones need, sorted. Only if refused."""
    reason: str = ""
    """Why it is refused; otherwise empty."""
