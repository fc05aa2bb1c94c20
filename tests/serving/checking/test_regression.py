"""Figures of a new snapshot against the serving one's, on the replay set that comes with the new one."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ipnext.errors import InvalidInput
from ipnext.model.manifest.replay import ReplaySpec
from serving.checking.regression import compare_figures
from serving.optimizing import judge
from tests.serving.optimizing.models import Ranker, draw_replay, export, load


class Reversed(Ranker):
    """Ranks as badly as the model ranks well."""

    def forward(self, user, item, history):
        answer = super().forward(user, item, history)
        return {**answer, "score": 1 - answer["score"]}


class Other(torch.nn.Module):
    def forward(self, user, item, history):
        return {"score": torch.sigmoid((user + item + history.sum(1)).float())}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Snapshots of a ranker and of one that ranks the other way round, and a replay set of the ranker's own labels."""
    root = tmp_path_factory.mktemp("regression")
    export(root / "good")
    torch.manual_seed(0)
    export(root / "bad", Reversed())
    export(root / "other", Other())
    save_file(draw_replay(load(root / "good"), 400), root / "replay.safetensors")
    return root


def compare(places, before, after, **limits):
    return compare_figures(
        places / before, places / after, places / "replay.safetensors", ReplaySpec.model_validate(limits)
    )


def test_a_worse_snapshot_breaks_each_limit_with_both_figures_and_the_limit(places):
    found = compare(places, "good", "bad", maxAucDrop=0.01, maxLogLossRise=0.001, maxEntropyRise=0.001)
    assert found.auc.before > 0.5 > found.auc.after
    assert found.auc.after == pytest.approx(1 - found.auc.before)
    drop = found.auc.before - found.auc.after
    assert found.broken[0] == (
        f"maxAucDrop: {drop:.6g} is above 0.01 ({found.auc.after:.6g} after {found.auc.before:.6g})"
    )
    assert [line.partition(":")[0] for line in found.broken] == ["maxAucDrop", "maxLogLossRise", "maxEntropyRise"]


def test_a_better_snapshot_keeps_all_limits(places):
    found = compare(places, "bad", "good", maxAucDrop=0, maxLogLossRise=0, maxEntropyRise=0)
    assert found.broken == ()
    assert (found.replay.rows, found.replay.source, found.replay.labels) == (400, "replay", "replay")


def test_a_limit_just_above_the_drop_holds_and_just_below_it_does_not(places):
    drop = compare(places, "good", "bad", maxAucDrop=1).auc
    exact = drop.before - drop.after
    assert compare(places, "good", "bad", maxAucDrop=exact + 1e-9).broken == ()
    assert compare(places, "good", "bad", maxAucDrop=exact - 1e-9).broken != ()


def test_the_top_rows_are_compared(places):
    assert compare(places, "good", "good", minTopKOverlap=1).broken == ()
    (line,) = compare(places, "good", "bad", minTopKOverlap=0.5).broken
    assert line.startswith("minTopKOverlap: 0 is below 0.5")


@pytest.mark.parametrize("limit", ["maxAucDrop", "maxLogLossRise", "maxEntropyRise"])
def test_without_labels_a_limit_can_not_be_judged(places, tmp_path, limit):
    unlabelled = {k: v for k, v in draw_replay(load(places / "good"), 50).items() if not k.startswith("labels:")}
    save_file(unlabelled, tmp_path / "replay.safetensors")
    limits = ReplaySpec.model_validate({limit: 1})
    found = compare_figures(places / "good", places / "bad", tmp_path / "replay.safetensors", limits)
    assert found.broken[0].startswith(f"{limit} can't be judged: it needs ")
    assert found.replay.labels is None


def test_times_are_compared_only_if_they_are_limited_and_the_line_has_both(places, monkeypatch):
    monkeypatch.setattr(judge, "ROUNDS", 5)
    assert compare(places, "good", "good", maxAucDrop=1).latency_us == ()
    found = compare(places, "good", "good", maxLatencyRatio=0)
    assert [pair.batch for pair in found.latency_us] == [1, 64]
    (line,) = found.broken
    assert re.fullmatch(r"maxLatencyRatio: \S+ is above 0 \(\S+ us after \S+ us for (1|64) rows\)", line)
    assert compare(places, "good", "good", maxLatencyRatio=1e9).broken == ()


def test_snapshots_of_other_tensors_are_not_compared(places):
    with pytest.raises(InvalidInput, match="differ in the outputs best"):
        compare(places, "good", "other", maxAucDrop=1)


def test_equal_labels_give_no_area(places, tmp_path):
    given = draw_replay(load(places / "good"), 50)
    given["labels:score"] = torch.from_numpy(np.zeros(50, np.float32))
    save_file(given, tmp_path / "replay.safetensors")
    limits = ReplaySpec.model_validate({"maxAucDrop": 1})
    (line,) = compare_figures(places / "good", places / "bad", tmp_path / "replay.safetensors", limits).broken
    assert line.startswith("maxAucDrop can't be judged")
