"""Cutting in a process of its own: what it gives, what it refuses, and that nothing of it is left."""

import json
import signal
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from activities.optimization import split_process as cutting
from activities.optimization.split_process import CutEnded, CutRefused, cut_in_process
from ipnext.model.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.split import SplitPolicy
from ipnext.model.status import Reason
from serving.export import export_model
from tests.processes import gone

pytestmark = pytest.mark.usefixtures("subprocesses")


class Ranker(nn.Module):
    """ids [B] -> score [B]."""

    def __init__(self):
        super().__init__()
        self.table, self.top = nn.Embedding(20, 4), nn.Linear(4, 1)

    def forward(self, ids):
        return self.top(self.table(ids)).squeeze(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("cutting") / "whole"
    export_model(Ranker(), {"ids": torch.zeros(4, dtype=torch.int64)}, directory)
    return directory


def policy(module: str) -> SplitPolicy:
    return SplitPolicy.model_validate({"parts": [{"name": "table", "modules": [module]}], "default": "top"})


def test_pieces_lie_in_the_directory_with_the_whole_as_their_parent(whole, tmp_path):
    words = []
    report = cut_in_process(whole, policy("table"), tmp_path / "parts", words.append)
    assert [segment.name for segment in report.segments] == ["table", "top"]
    assert report.bit_equal == {"1": True, "2": True, "64": True, "257": True}
    parent = SnapshotManifest.model_validate_json((whole / SNAPSHOT_FILE).read_bytes()).digest
    for name in ("table", "top"):
        manifest = SnapshotManifest.model_validate_json((tmp_path / "parts" / name / SNAPSHOT_FILE).read_bytes())
        assert manifest.parent == parent
    assert words, "it says that it is alive"


def test_a_policy_that_does_not_fit_is_refused_in_the_words_of_the_command(whole, tmp_path):
    with pytest.raises(CutRefused, match="'tabel'") as error:
        cut_in_process(whole, policy("tabel"), tmp_path / "parts", lambda _: None)
    assert error.value.reason is Reason.SPLIT_REFUSED
    assert not (tmp_path / "parts").exists()


def test_a_difference_is_refused_and_named(whole, tmp_path, monkeypatch):
    def differs(command, answer, errors, beat):
        answer.write_text(json.dumps({"differences": ["batch 1: output 'output' differs in 1 of 1 values"]}))
        errors.write_text("error: the split differs from the snapshot; nothing was written")
        return 1

    monkeypatch.setattr(cutting, "_run", differs)
    with pytest.raises(CutRefused, match="output 'output' differs in 1 of 1 values") as error:
        cut_in_process(whole, policy("table"), tmp_path / "parts", lambda _: None)
    assert error.value.reason is Reason.SPLIT_DIFFERS


def cutters():
    """Children of this process that cut; servers of other tests are children of it too."""
    return [child for child in psutil.Process().children() if "split" in child.cmdline()]


def test_a_process_that_is_killed_is_no_refusal(whole, tmp_path):
    def kill(_):
        for child in cutters():
            child.send_signal(signal.SIGKILL)

    with pytest.raises(CutEnded, match="SIGKILL"):
        cut_in_process(whole, policy("table"), tmp_path / "parts", kill)


def test_a_cut_that_takes_too_much_memory_ends_and_is_no_refusal(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "LEAST_MEMORY_BYTES", 1 << 28)
    with pytest.raises(CutEnded):
        cut_in_process(whole, policy("table"), tmp_path / "parts", lambda _: None)
    assert not (tmp_path / "parts").exists()


def test_nothing_runs_on_after_a_cancellation(whole, tmp_path):
    seen = []

    def cancelled(_):
        seen.extend(cutters())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_in_process(whole, policy("table"), tmp_path / "parts", cancelled)
    assert seen
    assert gone(seen)
