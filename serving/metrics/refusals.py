"""Counters of requests refused by access control.

They are not answers of a generation: gates and forecasts never see them.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, Metric

Reason = Literal["unauthenticated", "forbidden", "unknown_model", "rate_limited", "no_access_list", "unavailable"]
_NO_MODEL: Final = "unknown"


class RefusalCounts:
    """Refused requests by model and reason since the router started."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._counts: Counter[tuple[str, Reason]] = Counter()

    def note(self, model: str | None, reason: Reason) -> None:
        """Count a refusal. `model`: None if the name is unknown here, since clients can make names up."""
        self._counts[model or _NO_MODEL, reason] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the metric; called by prometheus_client."""
        family = CounterMetricFamily(
            "ipnext_router_refused_requests",
            "Requests that were not let through, for want of a credential, a role or a free place in a limit.",
            labels=("model", "region", "reason"),
        )
        for (model, reason), count in self._counts.items():
            family.add_metric((model, self._region, reason), count)
        yield family
