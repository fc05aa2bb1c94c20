"""Finished steps of optimization pipelines, as users see them: what was derived, or why it was refused."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Literal

from pydantic import Field

from ipnext.model.registry.optimization import AccuracyReport, Measured
from ipnext.model.value import Name, Value


class DerivativeFigure(Value):
    """One figure of an accuracy report, with its limit."""

    name: str
    before: float | None = None
    """Of the parent; None: the figure compares both."""
    after: float | None = None
    """None: it could not be measured."""
    limit: str | None = None
    """The step's limit on it, as the manifest names it; None: it is not limited."""
    most: float | None = None
    """The limit's value: a least one of `minTopKOverlap`."""
    is_broken: bool = False


class DerivativeView(Value):
    """A finished step on a snapshot."""

    part: Name
    kind: str
    """Of the step."""
    parent: int | None = None
    """Number of the snapshot that it derives from; None if it is known no more."""
    parent_digest: str
    snapshot: int | None = None
    """Number of the derived snapshot; None if a limit was broken."""
    published: int | None = None
    """Number of the published snapshot at the beginning of the pipeline."""
    hardware: tuple[Name, ...] = ()
    """Hardware kinds that it was derived for; empty: all kinds of its part."""
    state: Literal["derived", "refused", "released"]
    """`released`: retention let its bytes go."""
    reasons: tuple[str, ...] = ()
    """Limits that it does not keep."""
    figures: tuple[DerivativeFigure, ...] = ()
    replayed: str = ""
    """What it was judged on."""
    tools: Mapping[str, str] = Field(default_factory=dict)
    created_at: datetime


def read_figures(report: AccuracyReport) -> tuple[DerivativeFigure, ...]:
    """Return the figures of a report in the order of interest, each with the limit on it."""
    return tuple(_figures(report))


def describe_replay(report: AccuracyReport) -> str:
    """Return what a report was judged on, for people."""
    replay = report.replay
    source = "of the replay set" if replay.source == "replay" else "drawn"
    labels = {"replay": ", with labels", "parent": ", ranked by the parent", None: ""}[replay.labels]
    return f"{replay.rows:,} rows {source}{labels}"


def _figures(report: AccuracyReport) -> Iterator[DerivativeFigure]:
    yield _figure(report, "bytes of what was replaced", report.replaced_bytes, "maxBytesRatio")
    for name, measured, limit in (
        ("AUC", report.auc, "maxAucDrop"),
        ("log-loss", report.log_loss, "maxLogLossRise"),
        ("normalized entropy", report.normalized_entropy, "maxEntropyRise"),
    ):
        if measured is not None or _limit(report, limit) is not None:
            yield _figure(report, name, measured, limit)
    if report.top_k_overlap is not None or _limit(report, "minTopKOverlap") is not None:
        overlap = f"top {report.replay.top_k} overlap"
        yield _figure(report, overlap, report.top_k_overlap, "minTopKOverlap")
    yield _figure(report, "largest error", report.max_error, "maxError")
    for pair in report.latency_us:
        yield _figure(report, f"p50 of {pair.batch} rows, us", pair, "maxLatencyRatio")


def _figure(report: AccuracyReport, name: str, found: Measured | float | None, limit: str) -> DerivativeFigure:
    most = _limit(report, limit)
    before, after = (found.before, found.after) if isinstance(found, Measured) else (None, found)
    return DerivativeFigure(
        name=name,
        before=before,
        after=after,
        limit=None if most is None else limit,
        most=most,
        is_broken=any(line.startswith(limit) for line in report.broken),
    )


def _limit(report: AccuracyReport, name: str) -> float | None:
    found = report.settings.get(name)
    return float(found) if isinstance(found, int | float) else None
