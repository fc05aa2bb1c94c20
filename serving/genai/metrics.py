"""Prometheus metrics of a vLLM host about its engines. The engines' own metrics are at their `/metrics`."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.genai.engine_manager import EngineManager

_LABELS: Final = ("model", "part", "snapshot", "region")


class EngineMetrics(Collector):
    """The engines of one host."""

    def __init__(self, engines: EngineManager, *, region: str) -> None:
        self._engines = engines
        self._region = region
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by prometheus_client."""
        ready = GaugeMetricFamily("ipnext_engine_ready", "1 while the engine answers.", labels=_LABELS)
        restarts = CounterMetricFamily("ipnext_engine_restarts", "Starts after it had ended.", labels=_LABELS)
        in_flight = GaugeMetricFamily("ipnext_engine_requests_in_flight", "Requests it works on.", labels=_LABELS)
        resident = GaugeMetricFamily("ipnext_engine_resident_bytes", "Memory of all its processes.", labels=_LABELS)
        for hold, engine in self._engines.held.values:
            labels = (hold.model, hold.part, str(hold.snapshot), self._region)
            ready.add_metric(labels, float(engine.ready))
            restarts.add_metric(labels, engine.restarts)
            in_flight.add_metric(labels, engine.in_flight)
            resident.add_metric(labels, engine.resident_bytes)
        yield from (ready, restarts, in_flight, resident)
