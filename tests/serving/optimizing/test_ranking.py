"""Figures of rankings, against scikit-learn's and by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss as plain_log_loss
from sklearn.metrics import roc_auc_score

from serving.optimizing.ranking import auc, log_loss, normalized_entropy, top_k_overlap


@pytest.fixture
def rows():
    random = np.random.default_rng(3)
    return (random.random(500) < 0.3).astype(np.float64), np.round(random.random(500), 2)


def test_auc_counts_equal_scores_half(rows):
    assert auc(*rows) == pytest.approx(roc_auc_score(*rows))
    assert auc(np.array([0.0, 1.0]), np.array([0.5, 0.5])) == 0.5


def test_auc_needs_labels_of_both_kinds():
    assert auc(np.ones(3), np.arange(3.0)) is None


def test_log_loss_is_that_of_probabilities_only(rows):
    labels, scores = rows
    assert log_loss(labels, scores) == pytest.approx(plain_log_loss(labels, np.clip(scores, 1e-7, 1 - 1e-7)))
    assert log_loss(labels, scores * 2) is None


def test_the_constant_mean_has_a_normalized_entropy_of_one(rows):
    labels, _ = rows
    constant = log_loss(labels, np.full(len(labels), labels.mean()))
    assert normalized_entropy(labels, constant) == pytest.approx(1.0)
    assert normalized_entropy(np.ones(3), 0.1) is None


def test_overlap_is_the_share_of_the_best_rows_that_stay():
    before, after = np.array([4.0, 3, 2, 1]), np.array([4.0, 1, 3, 2])
    assert top_k_overlap(before, after, 2) == 0.5
    assert top_k_overlap(before, before * 2, 2) == 1.0


def test_overlap_within_groups_is_their_mean():
    before, after = np.array([2.0, 1, 2, 1]), np.array([1.0, 2, 2, 1])
    assert top_k_overlap(before, after, 1, np.array([7, 7, 3, 3])) == 0.5
    assert not math.isnan(top_k_overlap(before, after, 9, np.array([7, 7, 3, 3])))
