"""Metrics of freshness: the age of the snapshots that serve, and how parts keep to their targets."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from prometheus_client.metrics_core import Metric

from ipnext.api.metrics.families import gauge
from ipnext.model.lifecycle.freshness import ServingSnapshot

LABELS = ("model", "part", "region")


def freshness_metrics(serving: Sequence[ServingSnapshot], now: datetime) -> Iterator[Metric]:
    """Yield a series for each part and region of users in which it serves."""
    places = [([each.model, each.part, each.region], each) for each in serving]
    yield gauge(
        "snapshot_age_seconds",
        "Time since the training of the snapshot that serves the users of a region; since its publication if unknown.",
        LABELS,
        [(at, each.age_seconds(now)) for at, each in places],
    )
    yield gauge(
        "publish_to_serving_seconds",
        "From the publication of a snapshot to its first serving, of the last one that began to serve a region.",
        LABELS,
        [(at, each.to_serving_seconds) for at, each in places if each.to_serving_seconds is not None],
    )
    asked = [(at, each) for at, each in places if each.target_seconds is not None]
    yield gauge(
        "freshness_ratio",
        "Share of the last 24 hours in which the snapshots that serve were not older than the part's target.",
        LABELS,
        [(at, each.share_at(now) or 0.0) for at, each in asked],
    )
    yield gauge(
        "freshness_breached",
        "1 if the snapshot that serves is older than the target, and has been for longer than the objective allows.",
        LABELS,
        [(at, float(each.breached_at is not None)) for at, each in asked],
    )
