"""Delta snapshots are judged by their lineage and by what they change, without torch."""

import hashlib
from datetime import UTC, datetime

import numpy as np
import pytest
from safetensors.numpy import save
from temporalio.testing import ActivityEnvironment

from activities.validation.activities import ValidationActivities
from activities.validation.weights.deltas import check_deltas
from activities.validation.weights.finite_weights import check_finite
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.delta import ChangedTensor, DeltaDocument
from ipnext.model.registry.registry import ArtifactFile, Snapshot, SnapshotManifest

pytestmark = pytest.mark.trust

TOLD = ChangedTensor(rows=2, before="0" * 32, after="1" * 32)
GOOD = {"rows:weight": np.array([0, 3]), "values:weight": np.ones((2, 8), np.float32)}


def told(**changes):
    return {"weight": TOLD.model_copy(update=changes)}


@pytest.fixture
def judge(candidate, house, kit, tmp_path):
    """The check of a delta against `parent` (without: the published full snapshot of the part, number 1)."""
    base = as_snapshot(house.source(kit.SPARSE, kit.weights(1)), 1)

    def write(tensors, document, parent, *, engine="torch", signature=kit.SPARSE, full=None):
        place = tmp_path / f"delta-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        (place / "delta.safetensors").write_bytes(save(dict(tensors)))
        (place / "delta.json").write_text(DeltaDocument(tensors=document, full=full).model_dump_json())
        files = tuple(file_of(path) for path in sorted(place.iterdir()))
        manifest = SnapshotManifest(engine=engine, signature=signature, files=files, parent=parent)
        (place / "snapshot.json").write_text(manifest.model_dump_json())
        return ingest_directory(house.artifacts, place)

    def call(tensors=GOOD, document=None, *, parent=base.digest, published=(base,), **more):
        source = write(tensors, told() if document is None else document, parent, **more)
        known = {(each.part, each.digest): each for each in published}
        made = candidate(sparse=source)
        object.__setattr__(made, "published", known)
        return made

    call.base, call.write = base, write
    return call


def file_of(path):
    content = path.read_bytes()
    return ArtifactFile(path=path.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def as_snapshot(source, number, part="sparse"):
    return Snapshot(
        model="ranker",
        part=part,
        number=number,
        digest=source.manifest.digest,
        uri=source.uri,
        manifest=source.manifest,
        created_at=datetime.now(UTC),
    )


def the_only(results):
    [result] = results
    return result


def test_a_delta_of_a_published_snapshot_passes_and_tells_its_size(judge):
    result = the_only(check_deltas(judge()))
    assert result.passed, result
    assert result.message == "2 rows of 1 tensors against snapshot 1"


def test_full_snapshots_are_not_looked_at(candidate):
    assert not list(check_deltas(candidate()))


def test_a_delta_of_a_delta_is_measured_against_the_full_snapshot_below(judge):
    middle = as_snapshot(judge.write(GOOD, told(), judge.base.digest), 2)
    assert the_only(check_deltas(judge(parent=middle.digest, published=(judge.base, middle)))).passed
    beyond = {**GOOD, "rows:weight": np.array([0, 4])}
    result = the_only(check_deltas(judge(beyond, parent=middle.digest, published=(judge.base, middle))))
    assert (result.reason, result.passed) == (Reason.SCHEMA_MISMATCH, False)


@pytest.mark.parametrize("published", ["none", "another part"])
def test_a_parent_that_is_no_snapshot_of_the_part_is_refused_with_a_hint(judge, published):
    known = () if published == "none" else (judge.base.model_copy(update={"part": "dense"}),)
    result = the_only(check_deltas(judge(published=known)))
    assert result.reason is Reason.ARTIFACT_MISSING
    assert judge.base.digest in result.message
    assert "publish that one first, or a full snapshot" in result.message


def test_a_parent_gone_from_the_store_needs_the_full_result_there(judge, house, kit):
    gone = judge.base.model_copy(update={"digest": "a" * 64})
    result = the_only(check_deltas(judge(parent=gone.digest, published=(gone,))))
    assert (result.reason, result.passed) == (Reason.ARTIFACT_MISSING, False)
    full = house.source(kit.SPARSE, kit.weights(5)).manifest.digest
    assert the_only(check_deltas(judge(parent=gone.digest, published=(gone,), full=full))).passed


@pytest.mark.parametrize(
    ("tensors", "document", "reason", "text"),
    [
        ({**GOOD, "rows:weight": np.array([0, 4])}, told(), Reason.SCHEMA_MISMATCH, "end below 4"),
        ({**GOOD, "rows:weight": np.array([-1, 3])}, told(), Reason.SCHEMA_MISMATCH, "rise from 0"),
        ({**GOOD, "rows:weight": np.array([3, 3])}, told(), Reason.SCHEMA_MISMATCH, "rise from 0"),
        ({**GOOD, "rows:weight": np.array([0, 3], np.int32)}, told(), Reason.UNSAFE_FORMAT, "row numbers are I64"),
        ({**GOOD, "values:weight": np.ones((2, 7), np.float32)}, told(), Reason.SCHEMA_MISMATCH, r"[2, 7]"),
        ({**GOOD, "values:weight": np.ones((2, 8))}, told(), Reason.SCHEMA_MISMATCH, "is F64"),
        (GOOD, told(rows=3), Reason.SCHEMA_MISMATCH, r"[3, 8]"),
        (GOOD, told(whole=True), Reason.UNSAFE_FORMAT, "whole:weight"),
        ({"whole:weight": np.ones((4, 7), np.float32)}, told(whole=True), Reason.SCHEMA_MISMATCH, "full snapshot"),
        ({**GOOD, "values:other": np.ones(1)}, told(), Reason.UNSAFE_FORMAT, "values:other"),
        (
            {"rows:other": np.array([0, 1]), "values:other": np.ones((2, 8), np.float32)},
            {"other": TOLD},
            Reason.SCHEMA_MISMATCH,
            "'other' is not among",
        ),
    ],
)
def test_changes_that_do_not_fit_the_weights_are_refused(judge, tensors, document, reason, text):
    result = the_only(check_deltas(judge(tensors, document)))
    assert (result.passed, result.reason) == (False, reason), result
    assert text in result.message


def test_another_engine_or_signature_than_the_parents_is_refused(judge, kit):
    assert the_only(check_deltas(judge(engine="other"))).reason is Reason.ENGINE_MISMATCH
    assert the_only(check_deltas(judge(signature=kit.DENSE))).reason is Reason.SCHEMA_MISMATCH


def test_a_changed_row_with_nan_is_found_by_the_tensors_name(judge):
    bad = GOOD["values:weight"].copy()
    bad[1, 2] = np.nan
    results = [result for result in check_finite(judge({**GOOD, "values:weight": bad})) if not result.passed]
    assert the_only(results).reason is Reason.NON_FINITE_WEIGHTS
    assert "values:weight" in the_only(results).message


def test_a_published_delta_is_validated_against_the_snapshots_of_the_store(judge, house, kit):
    house.apply("ranker")
    house.publish("ranker", 1)
    with house.store.begin("ranker") as repository:
        parent = repository.snapshot("ranker", "sparse", 1)
        repository.publish("ranker", {"sparse": judge.write(GOOD, told(), parent.digest)}, change_id="delta")
    activities = ValidationActivities(house.store, house.artifacts)
    stage = StageInput(model="ranker", generation=2, change_id="delta", kind=ChangeKind.PUBLISH)
    report = ActivityEnvironment().run(activities.validate_generation, stage)
    assert report.refusal is None
    assert [check.message for check in report.checks if check.check == "deltas"] == [
        "2 rows of 1 tensors against snapshot 1"
    ]
