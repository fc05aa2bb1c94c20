"""Mutants that behave like the module they are made of: no test can find them."""

from collections.abc import Mapping
from typing import Final

EQUIVALENT: Final[Mapping[tuple[str, str, str], str]] = {
    (
        "activities/state/routes/failover_shares.py",
        (
            "return [(survivor, fraction * weight / total) for survivor, weight in zip(tier, weights, strict=True)"
            " if →weight > 0]"
        ),
        "Gt becomes GtE",
    ): "a survivor without weight gets a share of 0, which is left out of the table",
    (
        "activities/state/wave_state.py",
        "→taken <= supply.get(cell, 0.0) + 1e-6",
        "LtE becomes Lt",
    ): "the allowance is for rounding: no sum of units is exactly that much above the supply",
    (
        "activities/transition/gate/verdict.py",
        "@dataclass(frozen=→True)",
        "True becomes False",
    ): "nothing changes or hashes an input or a verdict",
    (
        "activities/transition/route_updates.py",
        "found = ((place, round(fraction, →12)) for place, fraction in sorted(fractions.items()))",
        "12 becomes 13",
    ): "the noise of a sum of shares lies in later digits",
    ("activities/transition/gate/verdict.py", '→return ""', "returns None"): "the caller asks only whether it is empty",
    (
        "ipnext/freezes/evaluation.py",
        "FIRST_SPAN = timedelta(days=→8)",
        "8 becomes 9",
    ): "what the first span does not show is looked for in a longer one",
    (
        "ipnext/freezes/evaluation.py",
        (
            "found = [window for window in freeze.windows(at, at + timedelta(seconds=→1))"
            " if window.start <= at < window.end]"
        ),
        "1 becomes 2",
    ): "windows that begin later are left out",
    (
        "planner/core/solution.py",
        "shares = {route.key: round(y, 9) for route, y in zip(routes, fractions, strict=→True) if y > 1e-7}",
        "True becomes False",
    ): "a program has a fraction for each route",
    (
        "planner/core/solution.py",
        "return {key: y for key, y in shares.items() if →y > 0}",
        "Gt becomes GtE",
    ): "shares that are kept shrink by rounding errors, never to nothing",
    (
        "planner/core/solution.py",
        "limits = [*(able / total for able in capacity.values()), min(most / total, →1.0)]",
        "1.0 becomes 2.0",
    ): "the fractions of each origin sum to 1 at most, so those of all weighted by demand do, too",
    (
        "serving/protocol/json_size.py",
        "if →piece.count(b'\"') < _FEW_QUOTES:",
        "Lt becomes LtE",
    ): "both ways give the same number; which is faster depends on the quotes",
    ("serving/protocol/frames.py", "self._frames += →1", "1 becomes 2"): "it identifies a frame and counts none",
    ("serving/protocol/frames.py", "self._size = →0", "0 becomes 1"): "it is set before a refused body makes it count",
    (
        "serving/protocol/tensors.py",
        "return np.where(np.isnan(values), np.uint16(→0x7FC0), rounded).astype(np.uint16)",
        "32704 becomes 32705",
    ): "another NaN",
    ("serving/routing/admission.py", "@dataclass(slots=→True)", "True becomes False"): "slots save memory only",
    (
        "serving/routing/sync_policy.py",
        "return (0, →0, 0) if same_name else None",
        "0 becomes 1",
    ): "hosts of one generation are ranked alike",
    (
        "serving/routing/sync_policy.py",
        "return →2 * abs(ahead) - (ahead < 0), 0, not same_name",
        "2 becomes 3",
    ): "the order of the tiers stays",
}
"""Module, line with a mark before the changed node, and fault -> why nothing can tell the two apart."""
