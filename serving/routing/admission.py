"""Limit on the requests of one model in flight in a router: requests beyond it are refused at once, not queued."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ipnext.errors import Unavailable
from serving.metrics.in_flight import InFlight

DEFAULT_MAX_IN_FLIGHT: Final = 1024


@dataclass(slots=True)
class _Model:
    in_flight: int = 0


class RequestAdmission:
    """Requests in flight by model. An overloaded model leaves the others their share of the router."""

    def __init__(self, limit: int = DEFAULT_MAX_IN_FLIGHT) -> None:
        self._limit = limit
        self._models: dict[str, _Model] = {}

    @property
    def under_way(self) -> Collection[str]:
        """Models that have requests in flight."""
        return [name for name, model in self._models.items() if model.in_flight]

    def admit(self, model: str) -> InFlight:
        """Count a request until it ends; the context manager must be entered at once.

        Unavailable if the model is at its limit.
        """
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = _Model()
        if found.in_flight >= self._limit:
            msg = (
                f"model {model} has {found.in_flight} requests under way, "
                f"the limit is {self._limit} (--max-in-flight); "
                "try again"
            )
            raise Unavailable(msg)
        return InFlight(found)
