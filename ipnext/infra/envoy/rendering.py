"""The text of Envoy's route configuration. The rules of a model are rendered once for each of its tables."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ipnext.infra.envoy import config
from ipnext.model.deployment.route_table import RouteTable

RULES: Final = "rules of the configuration"
"""Stands in the text of the configuration in place of its rules."""


class RouteRenderer:
    """Renders one region's route configurations, each from the former one: a change costs the models that it changes.

    The text is that of `envoy.discovery(version, envoy.routes(gateway))`.
    """

    def __init__(self) -> None:
        self._around: tuple[Any, ...] = ()
        self._models: dict[str, tuple[RouteTable, bool, bytes]] = {}

    def text(self, version: int, gateway: config.Gateway) -> bytes:
        """Return the content of the file for Envoy to watch."""
        around = config.around_models(gateway)
        if around != self._around:
            self._around, self._models = around, {}
        self._models = {model: self._render_model(gateway, model) for model in sorted(gateway.tables)}
        shared = config.shared_rules(gateway)
        rules = (_text(shared.first), *(own for _, _, own in self._models.values()), _text(shared.last))
        before, after = _compact(config.discovery(version, config.route_configuration([{"": RULES}]))).split(
            _compact({"": RULES})
        )
        return b"".join((before, b",\n".join(filter(None, rules)), after))

    def _render_model(self, gateway: config.Gateway, model: str) -> tuple[RouteTable, bool, bytes]:
        table, closed = gateway.tables[model], model in gateway.closed
        former = self._models.get(model)
        if former is not None and (former[0], former[1]) == (table, closed):
            return former
        return table, closed, _text(config.model_routes(gateway, table))


def _text(rules: Iterable[config.Json]) -> bytes:
    """Return the elements of a list in JSON, without its brackets."""
    return _compact(list(rules))[1:-1]


def _compact(content: config.Json | Sequence[config.Json]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
