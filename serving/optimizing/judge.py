"""Compares a derived snapshot with the one that it was derived from, on the same requests and the same host."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from ipnext.errors import InvalidInput
from ipnext.model.manifest.optimization import StepSpec
from ipnext.model.manifest.replay import RankingLimits
from ipnext.model.registry.optimization import AccuracyReport, LatencyPair, Measured, ReplayReport
from ipnext.model.registry.registry import Signature, SnapshotManifest
from ipnext.names import COMPILE_SETTING, LIBRARY_FILE
from serving.compiling.accuracy import differences
from serving.engines.base import LoadedPart, find_engine
from serving.engines.torch.engine import TorchEngine
from serving.optimizing.ranking import auc, log_loss, normalized_entropy, top_k_overlap
from serving.optimizing.replay import Replay, draw_replay, read_replay
from serving.protocol.tensors import FLOATS, Array, bf16_to_float32

LATENCY_BATCHES: Final = (1, 64)
ROUNDS: Final = 300
"""Passes of each snapshot and batch size that are timed, if they take no longer than LONGEST_SECONDS."""
LONGEST_SECONDS: Final = 20.0
WARM_ROUNDS: Final = 20


@dataclass(frozen=True, slots=True)
class Judgement:
    """Figures of a comparison."""

    replay: ReplayReport
    max_error: float
    max_relative_error: float
    auc: Measured | None
    log_loss: Measured | None
    normalized_entropy: Measured | None
    top_k_overlap: float | None
    latency_us: tuple[LatencyPair, ...] = ()


def judge(
    before: tuple[Path, SnapshotManifest], after: tuple[Path, SnapshotManifest], spec: StepSpec, replay: Path | None
) -> Judgement:
    """Run both snapshots, each by its directory and manifest, and time them. `replay` is a file; None: drawn requests.

    InvalidInput if the replay set or the output does not fit the model.
    """
    old, new = _load(*before), _load_derived(*after)
    requests = draw_replay(before[0], old) if replay is None else read_replay(replay, old.signature)
    return _timed(_compare_on(old, new, requests, spec), old, new, requests)


def compare_snapshots(
    before: tuple[Path, SnapshotManifest], after: tuple[Path, SnapshotManifest], limits: RankingLimits, replay: Path
) -> Judgement:
    """Run both snapshots, each by its directory and manifest, on a replay set; time them if that is limited.

    InvalidInput if the replay set or the output does not fit both models.
    """
    old, new = _load(*before), _load(*after)
    requests = read_replay(replay, new.signature)
    figures = _compare_on(old, new, requests, limits)
    return figures if limits.max_latency_ratio is None else _timed(figures, old, new, requests)


def _timed(figures: Judgement, old: LoadedPart, new: LoadedPart, requests: Replay) -> Judgement:
    return replace(figures, latency_us=tuple(_latency(old, new, requests, batch) for batch in LATENCY_BATCHES))


def _compare_on(old: LoadedPart, new: LoadedPart, requests: Replay, limits: RankingLimits) -> Judgement:
    old.warm_up()
    new.warm_up()
    output = _ranked_output(new.signature, limits.output, requests)
    errors, scores = _compare(old, new, requests, output)
    return _judgement(limits, requests, output, errors, scores)


def _judgement(
    limits: RankingLimits,
    requests: Replay,
    output: str | None,
    errors: tuple[float, float],
    scores: tuple[Array, Array],
) -> Judgement:
    labels, of = _labels(requests, output, scores[0])
    losses: list[float | None] = [log_loss(labels, each) for each in scores] if of == "replay" else [None, None]
    entropies: list[float | None] = [None if loss is None else normalized_entropy(labels, loss) for loss in losses]
    aucs: list[float | None] = [auc(labels, each) for each in scores] if of is not None else [None, None]
    k = min(limits.top_k, len(scores[0]))
    groups = None if output is None else requests.groups.get(output)
    return Judgement(
        replay=ReplayReport(rows=requests.rows, source=requests.source, labels=of, output=output, top_k=k),
        max_error=errors[0],
        max_relative_error=errors[1],
        auc=_pair(aucs),
        log_loss=_pair(losses),
        normalized_entropy=_pair(entropies),
        top_k_overlap=top_k_overlap(*scores, k, groups) if output is not None else None,
    )


def _load(directory: Path, manifest: SnapshotManifest) -> LoadedPart:
    return find_engine(manifest.engine).load(directory, manifest, {})


def _load_derived(directory: Path, manifest: SnapshotManifest) -> LoadedPart:
    """Load what a step wrote: its library, if it compiled one, was made by this process."""
    if all(file.path != LIBRARY_FILE for file in manifest.files):
        return _load(directory, manifest)
    return TorchEngine(trusts_libraries=True).load(directory, manifest, {COMPILE_SETTING: True})


def _ranked_output(signature: Signature, asked: str | None, requests: Replay) -> str | None:
    """Return the output to rank: the asked one, the labelled one, else the first with one number a row."""
    able = [
        spec.name
        for spec in signature.outputs
        if spec.datatype in FLOATS and spec.shape[:1] == (-1,) and all(size == 1 for size in spec.shape[1:])
    ]
    wanted = asked or next(iter(requests.labels), None)
    if wanted is not None and wanted not in able:
        msg = f"output: {wanted!r} has not one number a row; allowed: {', '.join(able) or 'none'}"
        raise InvalidInput(msg, field="output", value=wanted, allowed=able)
    return wanted or next(iter(able), None)


def _compare(
    old: LoadedPart, new: LoadedPart, requests: Replay, output: str | None
) -> tuple[tuple[float, float], tuple[Array, Array]]:
    """Return the largest errors, absolute and relative, and the scores of all rows by both."""
    worst = (0.0, 0.0)
    scores: tuple[list[Array], list[Array]] = ([], [])
    datatypes = {spec.name: spec.datatype for spec in old.signature.outputs}
    for request in requests.requests:
        inputs = {name: tensor.data for name, tensor in request.items()}
        answers = old.infer(dict(inputs)), new.infer(dict(inputs))
        found = differences(old.signature, *answers)
        worst = (max(worst[0], found[0]), max(worst[1], found[1]))
        if output is not None:
            for kept, answer in zip(scores, answers, strict=True):
                kept.append(_plain(datatypes[output], answer[output]))
    if output is None:
        return worst, (np.zeros(0), np.zeros(0))
    return worst, (np.concatenate(scores[0]), np.concatenate(scores[1]))


def _plain(datatype: str, scores: Array) -> Array:
    return (bf16_to_float32(scores) if datatype == "BF16" else scores).astype(np.float64).reshape(-1)


def _labels(requests: Replay, output: str | None, scores: Array) -> tuple[Array, str | None]:
    """Return labels and their origin.

    Without labels, a row counts as positive if the former snapshot's score is above its median: the AUC of the derived
    one then falls by the share of such pairs that it orders otherwise.
    """
    if output is None:
        return scores, None
    if output in requests.labels:
        return requests.labels[output], "replay"
    return (scores > np.median(scores)).astype(np.float64), "parent"


def _pair(found: Sequence[float | None]) -> Measured | None:
    before, after = found
    return None if before is None or after is None else Measured(before=before, after=after)


def _latency(old: LoadedPart, new: LoadedPart, requests: Replay, batch: int) -> LatencyPair:
    """Time both in turns, each first every other time, so that a machine that is busier for a while slows both."""
    times: tuple[list[int], list[int]] = ([], [])
    pairs = list(zip((old, new), times, strict=True))
    began = time.monotonic()
    for number in range(WARM_ROUNDS + ROUNDS):
        inputs = requests.rows_of(batch, number)
        pairs.reverse()
        for part, kept in pairs:
            start = time.perf_counter_ns()
            part.infer(inputs)
            kept.append(time.perf_counter_ns() - start)
        if number > WARM_ROUNDS and time.monotonic() - began > LONGEST_SECONDS:
            break
    before, after = (float(np.median(kept[WARM_ROUNDS:])) / 1000 for kept in times)
    return LatencyPair(batch=batch, before=before, after=after)


def broken_limits(spec: StepSpec, report: AccuracyReport) -> tuple[str, ...]:
    """Return a line for each limit that a derived snapshot does not keep, or that can't be judged."""
    others = {
        "maxError": (spec.max_error, report.max_error),
        "maxBytesRatio": (spec.max_bytes_ratio, report.bytes_ratio),
        "maxLatencyRatio": (spec.max_latency_ratio, report.latency_ratio),
    }
    above = (
        f"{name}: {found:.6g} is above {limit:g}"
        for name, (limit, found) in others.items()
        if limit is not None and found > limit
    )
    return (*broken_ranking_limits(spec, report), *above)


def broken_ranking_limits(limits: RankingLimits, figures: Judgement | AccuracyReport) -> tuple[str, ...]:
    """Return a line for each limit on a ranking that is not kept, with both figures, or that can't be judged."""
    return tuple(_broken(limits, figures))


def _broken(limits: RankingLimits, figures: Judgement | AccuracyReport) -> Iterator[str]:
    rises: Mapping[str, tuple[float | None, Measured | None, float | None, str]] = {
        "maxAucDrop": (
            limits.max_auc_drop,
            figures.auc,
            _drop(figures.auc),
            "an output with one number a row, and labels of both kinds",
        ),
        "maxLogLossRise": (limits.max_log_loss_rise, figures.log_loss, _rise(figures.log_loss), _NEEDS_LABELS),
        "maxEntropyRise": (
            limits.max_entropy_rise,
            figures.normalized_entropy,
            _rise(figures.normalized_entropy),
            _NEEDS_LABELS,
        ),
    }
    for name, (limit, pair, found, needs) in rises.items():
        if limit is not None and (pair is None or found is None):
            yield f"{name} can't be judged: it needs {needs}"
        elif limit is not None and pair is not None and found is not None and found > limit:
            labels = figures.replay.labels
            against = f" by {labels}'s labels" if name == "maxAucDrop" and labels == "parent" else ""
            yield f"{name}: {found:.6g} is above {limit:g} ({pair.after:.6g} after {pair.before:.6g}{against})"
    if limits.min_top_k_overlap is not None:
        if figures.top_k_overlap is None:
            yield "minTopKOverlap can't be judged: it needs an output with one number a row"
        elif figures.top_k_overlap < limits.min_top_k_overlap:
            yield f"minTopKOverlap: {figures.top_k_overlap:.6g} is below {limits.min_top_k_overlap:g}"


_NEEDS_LABELS: Final = "labels of both kinds in a replay set, and scores between 0 and 1"


def _rise(found: Measured | None) -> float | None:
    return None if found is None else found.rise


def _drop(found: Measured | None) -> float | None:
    return None if found is None else -found.rise
