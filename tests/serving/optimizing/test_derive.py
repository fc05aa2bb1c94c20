"""Steps and pipelines: the derived snapshot, its report, and limits that refuse it."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ipnext.errors import InvalidInput
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.registry.optimization import AccuracyReport
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from serving.optimizing.derive import derive_snapshot, optimize_snapshot
from serving.snapshots.directory import verify_manifest
from tests.plugin_packages import write_distribution
from tests.serving.optimizing.models import draw_replay, export, inputs, load, step, write_replay


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("derive") / "whole"
    export(directory)
    return directory


@pytest.fixture(scope="module")
def replay(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "replay.safetensors"
    write_replay(path, load(whole))
    return path


def test_a_derived_snapshot_names_its_parent_tools_and_report(whole, replay, tmp_path):
    found = derive_snapshot(whole, step(maxAucDrop=0.001), tmp_path / "out", replay=replay)
    manifest, parent = verify_manifest(tmp_path / "out"), verify_manifest(whole)
    assert manifest == found.manifest
    assert (manifest.parent, manifest.signature) == (parent.digest, parent.signature)
    assert manifest.producer["step"] == "quantize"
    assert {"ipnext", "torch", "quantize"} <= manifest.producer.keys()
    assert [file.path for file in manifest.files] == ["optimization.json", "program.json", "weights.safetensors"]
    written = AccuracyReport.model_validate_json((tmp_path / "out" / "optimization.json").read_bytes())
    assert written == found.report


def test_the_report_has_every_figure_of_a_labelled_replay_set(whole, replay, tmp_path):
    report = derive_snapshot(whole, step(), tmp_path / "out", replay=replay).report
    assert (report.replay.rows, report.replay.source, report.replay.labels) == (600, "replay", "replay")
    assert report.replay.output == "score"
    scores = {
        name: load(place).infer(arrays(replay))["score"] for name, place in (("old", whole), ("new", tmp_path / "out"))
    }
    error = float(np.abs(scores["old"] - scores["new"]).max())
    assert error > 0
    assert abs(report.auc.rise) < 0.01
    assert 0.5 < report.auc.before < 1
    assert 0 < report.log_loss.before < 1
    assert report.normalized_entropy.before == pytest.approx(report.normalized_entropy.after, abs=0.01)
    assert 0 <= report.top_k_overlap <= 1
    assert [pair.batch for pair in report.latency_us] == [1, 64]
    assert all(pair.before > 0 < pair.after for pair in report.latency_us)


def arrays(replay):
    return {name: tensor.numpy() for name, tensor in load_file(replay).items() if ":" not in name}


def test_without_labels_the_former_snapshots_median_stands_for_them(whole, tmp_path):
    report = derive_snapshot(whole, step(maxAucDrop=0.05), tmp_path / "out", replay=None).report
    assert (report.replay.source, report.replay.labels) == ("drawn", "parent")
    assert report.auc.before == 1.0
    assert 0.95 < report.auc.after <= 1.0
    assert (report.log_loss, report.normalized_entropy) == (None, None)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ({"maxError": 1e-9}, "maxError: "),
        ({"maxBytesRatio": 0.2}, "maxBytesRatio: 0.28125 is above 0.2"),
        ({"maxLogLossRise": 0.1}, "maxLogLossRise can't be judged: it needs labels"),
        ({"maxEntropyRise": 0.1}, "maxEntropyRise can't be judged: it needs labels"),
        ({"maxLatencyRatio": 0}, "maxLatencyRatio: "),
    ],
)
def test_a_broken_limit_refuses_the_derived_snapshot_and_names_both_figures(whole, tmp_path, limit, told):
    found = derive_snapshot(whole, step(**limit), tmp_path / "out", replay=None)
    assert found.manifest is None
    assert len(found.report.broken) == 1
    assert found.report.broken[0].startswith(told)
    assert not (tmp_path / "out").exists()


def test_a_worse_ranking_breaks_the_limits_of_auc_and_overlap(whole, tmp_path):
    """The report of a coarse step, judged by limits."""
    labelled = tmp_path / "labelled"
    scores = load(whole).infer({name: tensor.numpy() for name, tensor in inputs(600, 1).items()})["score"]
    labels = torch.from_numpy((scores > np.median(scores)).astype(np.int64))
    save_file({**inputs(600, 1), "labels:score": labels}, labelled)
    limits = {"maxAucDrop": 0.0, "minTopKOverlap": 1.0, "topK": 300}
    found = derive_snapshot(whole, step("int4", **limits), tmp_path / "out", replay=labelled)
    assert [line.partition(":")[0] for line in found.report.broken] == ["maxAucDrop", "minTopKOverlap"]


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"user": torch.zeros(3, dtype=torch.int64)}, "replay: input 'item' is missing"),
        (
            {**inputs(3), "labels:score": torch.zeros(4)},
            "labels:score: has shape [4]; needed: one value for each of the 3",
        ),
        ({**inputs(3), "labels:score": torch.full((3,), 0.5)}, "labels:score: a label is 0 or 1"),
        ({**inputs(3), "labels:click": torch.zeros(3)}, "'click' is no output; allowed: score, best"),
        ({**inputs(3), "weight": torch.zeros(3)}, "input 'weight' does not exist"),
    ],
)
def test_a_replay_set_that_does_not_fit_is_refused(whole, tmp_path, tensors, told):
    save_file(tensors, tmp_path / "replay")
    with pytest.raises(InvalidInput) as refused:
        derive_snapshot(whole, step(), tmp_path / "out", replay=tmp_path / "replay")
    assert told in refused.value.message


def test_an_output_of_several_numbers_a_row_is_not_ranked(whole, tmp_path):
    with pytest.raises(InvalidInput, match="'best' has not one number a row; allowed: score"):
        derive_snapshot(whole, step(output="best"), tmp_path / "out", replay=None)


def test_a_replay_set_in_the_snapshot_is_used_and_does_not_go_on(tmp_path):
    export(tmp_path / "first")
    export(tmp_path / "plain", replay=draw_replay(load(tmp_path / "first"), 50))
    assert [file.path for file in verify_manifest(tmp_path / "plain").files][-1] == "replay.safetensors"
    report = optimize_snapshot(tmp_path / "plain", (step(),), tmp_path / "out")
    assert (report.steps[0].replay.source, report.steps[0].replay.rows) == ("replay", 50)
    assert not (tmp_path / "out" / "replay.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"user": None}, "replay: 'user' is missing"),
        ({"labels:click": torch.zeros(3)}, "replay: 'labels:click' is unknown"),
        ({"labels:score": torch.zeros(4)}, "replay: they have [3, 4] rows"),
    ],
)
def test_a_replay_set_that_does_not_fit_is_refused_at_the_export(tmp_path, change, told):
    given = {name: tensor for name, tensor in {**inputs(3), **change}.items() if tensor is not None}
    with pytest.raises(InvalidInput) as refused:
        export(tmp_path / "out", replay=given)
    assert told in refused.value.message
    assert not (tmp_path / "out").exists()


def test_steps_follow_each_other_and_the_last_one_is_written(whole, replay, tmp_path):
    steps = (step(tables=["tables.*"]), step("int4", tables=["bag.*"]))
    report = optimize_snapshot(whole, steps, tmp_path / "out", replay=replay)
    first, second = report.steps
    assert first.parent == verify_manifest(whole).digest
    assert second.parent not in {first.parent, report.snapshot}
    manifest = SnapshotManifest.model_validate_json((tmp_path / "out" / SNAPSHOT_FILE).read_bytes())
    assert (manifest.digest, manifest.parent) == (report.snapshot, second.parent)


@pytest.mark.parametrize(("then", "refused", "steps"), [("refuse", True, 1), ("keep", False, 2)])
def test_a_broken_limit_ends_the_pipeline_or_keeps_what_was_given(whole, tmp_path, then, refused, steps):
    pipeline = (step(maxError=0, onRefusal=then), step(tables=["bag.*"]))
    report = optimize_snapshot(whole, pipeline, tmp_path / "out")
    assert (report.refused, len(report.steps)) == (refused, steps)
    assert (tmp_path / "out").exists() == (not refused)
    if not refused:
        assert report.steps[1].parent == verify_manifest(whole).digest


COPY = """
import shutil

class Copy:
    def check(self, settings):
        pass

    def versions(self):
        return {"copy": "7"}

    def derive(self, source, settings, draft):
        for name in ("program.json", "weights.safetensors"):
            shutil.copyfile(source / name, draft / name)
        (draft / settings.get("more", "notes.txt")).write_text("copied")
        return {"files": 3}
"""


def plugin(**settings):
    return OptimizationStep.model_validate({"plugin": {"kind": "copy", "settings": settings, "maxError": 0}})


@pytest.fixture
def copies(tmp_path, monkeypatch):
    write_distribution(tmp_path / "dist", "copies", COPY, {"ipnext.optimizations": {"copy": "copies:Copy"}})
    monkeypatch.syspath_prepend(str(tmp_path / "dist"))


@pytest.mark.usefixtures("copies")
def test_a_kind_of_another_distribution_derives_under_the_same_limits(whole, tmp_path):
    found = derive_snapshot(whole, plugin(), tmp_path / "out", replay=None)
    assert found.manifest.producer["copy"] == "7"
    assert (found.report.details, found.report.max_error, found.report.bytes_ratio) == ({"files": 3}, 0.0, 1.0)


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize(
    ("more", "told"), [("library.so", "native code only with a signature"), ("run.py", "is no file of such a snapshot")]
)
def test_code_that_a_kind_writes_is_refused(whole, tmp_path, more, told):
    with pytest.raises(InvalidInput, match=told):
        derive_snapshot(whole, plugin(more=more), tmp_path / "out", replay=None)
    assert not (tmp_path / "out").exists()


def test_reports_are_plain_json(whole, replay, tmp_path):
    derive_snapshot(whole, step(), tmp_path / "out", replay=replay)
    assert json.loads((tmp_path / "out" / "optimization.json").read_text())["format"] == "ipnext/optimization/v1"
