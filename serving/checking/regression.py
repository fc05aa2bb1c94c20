"""Compares the figures of a new snapshot with those of the serving one, on the requests and labels of a replay set."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ipnext.errors import InvalidInput
from ipnext.model.manifest.replay import ReplaySpec
from ipnext.model.registry.checking import RegressionReport
from ipnext.model.registry.optimization import LatencyPair
from ipnext.model.registry.registry import Signature
from serving.optimizing.judge import broken_ranking_limits, compare_snapshots
from serving.splitting.split import read_manifest


def compare_figures(before: Path, after: Path, replay: Path, limits: ReplaySpec) -> RegressionReport:
    """Run both snapshots on a replay set, each by its directory. The report lists the limits that are broken.

    Without labels a limit of AUC, log-loss or entropy counts as broken: the labels that a step draws from the scores of
    its source say nothing of another training. InvalidInput if the snapshots have other tensors, or the replay set does
    not fit them.
    """
    old, new = read_manifest(before), read_manifest(after)
    _check_alike(old.signature, new.signature)
    found = compare_snapshots((before, old), (after, new), limits, replay)
    if found.replay.labels != "replay":
        found = replace(found, auc=None, replay=found.replay.model_copy(update={"labels": None}))
    return RegressionReport(
        replay=found.replay,
        auc=found.auc,
        log_loss=found.log_loss,
        normalized_entropy=found.normalized_entropy,
        top_k_overlap=found.top_k_overlap,
        max_error=found.max_error,
        latency_us=found.latency_us,
        broken=(*broken_ranking_limits(limits, found), *_slower(limits, found.latency_us)),
    )


def _slower(limits: ReplaySpec, times: Iterable[LatencyPair]) -> Iterator[str]:
    """Yield a line if the batch size that got slowest is beyond the limit."""
    if limits.max_latency_ratio is None:
        return
    worst = max(times, key=lambda pair: pair.after / pair.before)
    ratio = worst.after / worst.before
    if ratio > limits.max_latency_ratio:
        told = f"{worst.after:.1f} us after {worst.before:.1f} us for {worst.batch} rows"
        yield f"maxLatencyRatio: {ratio:.3g} is above {limits.max_latency_ratio:g} ({told})"


def _check_alike(before: Signature, after: Signature) -> None:
    for what in ("inputs", "outputs"):
        was, now = (
            {spec.name: (spec.datatype, spec.shape) for spec in getattr(signature, what)}
            for signature in (before, after)
        )
        if was != now:
            names = ", ".join(sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)))
            msg = f"replay: the snapshots differ in the {what} {names}; figures are compared of the same tensors only"
            raise InvalidInput(msg, field="replay")
