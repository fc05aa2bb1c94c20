"""Figures of a ranking: AUC, log-loss, normalized entropy, overlap of the top rows."""

from typing import Final

import numpy as np

from serving.protocol.tensors import Array

SMALLEST: Final = 1e-7
"""Probabilities are moved this far from 0 and 1, so that one sure mistake does not decide a log-loss."""


def auc(labels: Array, scores: Array) -> float | None:
    """Return the area under the ROC curve by ranks, equal scores counting half (Mann-Whitney).

    None if all labels are equal.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(labels: Array, scores: Array) -> float | None:
    """Return the mean negative log-likelihood in nats. None if a score is no probability."""
    if not ((scores >= 0) & (scores <= 1)).all():
        return None
    sure = np.clip(scores.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return float(-(labels * np.log(sure) + (1 - labels) * np.log1p(-sure)).mean())


def normalized_entropy(labels: Array, loss: float) -> float | None:
    """Return a log-loss over that of the mean label (He et al., ADKDD 2014). None if all labels are equal."""
    mean = float(labels.mean())
    if mean in {0.0, 1.0}:
        return None
    return loss / -float(mean * np.log(mean) + (1 - mean) * np.log1p(-mean))


def top_k_overlap(before: Array, after: Array, k: int, groups: Array | None = None) -> float:
    """Return the share of the `k` best rows that stay so: the mean over all groups, or over all rows as one."""
    members = [np.arange(len(before))] if groups is None else _split(groups)
    return float(np.mean([_overlap(before[rows], after[rows], k) for rows in members]))


def _overlap(before: Array, after: Array, k: int) -> float:
    best, now = (set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in (before, after))
    return len(best & now) / len(best)


def _split(groups: Array) -> list[Array]:
    order = np.argsort(groups, kind="stable")
    return list(np.split(order, np.flatnonzero(np.diff(groups[order])) + 1))
