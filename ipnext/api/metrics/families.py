"""Families of metrics with known values: the store has the counts, the process counts nothing."""

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

Values = Iterable[tuple[Sequence[str], float]]
"""Label values and the value."""


def gauge(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    """Return a gauge `ipnext_NAME`."""
    family = GaugeMetricFamily(f"ipnext_{name}", text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def counter(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    """Return a counter `ipnext_NAME`, whose name ends in `_total`."""
    family = CounterMetricFamily(f"ipnext_{name}", text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
