"""Counts of requests that were not let through. They are no answers of any generation: gates and forecasts never see them."""

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, Metric

Reason = Literal["unauthenticated", "forbidden", "unknown_model", "rate_limited", "no_access_list", "unavailable"]
_NO_MODEL: Final = "unknown"


class Refusals:
    """Refused requests by model and reason since the router started."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._counts: Counter[tuple[str, Reason]] = Counter()

    def note(self, model: str | None, reason: Reason) -> None:
        """Count a request. `model`: None for a name that is not known here, which only a client made up."""
        self._counts[model or _NO_MODEL, reason] += 1

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks."""
        family = CounterMetricFamily(
            "ipnext_router_refused_requests",
            "Requests that were not let through, for want of a credential, a role or a free place in a limit.",
            labels=("model", "region", "reason"),
        )
        for (model, reason), count in self._counts.items():
            family.add_metric((model, self._region, reason), count)
        yield family
