"""Publishing on both engines: numbers, idempotency, what is refused."""

import pytest

from ipnext.errors import Conflict, DuplicateSnapshot, InvalidInput, NotFound
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult, ValidationReport
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.model.value import canonical_json


def test_a_first_publish_makes_snapshots_a_generation_and_a_change(applied, publish, make):
    change = publish("c1", dense="d1", sparse="s1")
    assert (change.kind, change.sequence, change.generation) == (ChangeKind.PUBLISH, 1, 1)
    assert change.state is ChangeState.RECORDED
    with applied.begin() as repository:
        generation = repository.generation("ctr", 1)
        snapshot = repository.snapshot("ctr", "dense", 1)
        assert repository.unsubmitted_changes() == (change,)
    assert generation.snapshots == {"dense": 1, "sparse": 1}
    assert generation.state is GenerationState.PENDING
    assert (snapshot.manifest, snapshot.uri) == (make.source("d1").manifest, make.source("d1").uri)


def test_a_generation_takes_the_newest_snapshot_of_each_part(applied, publish):
    publish("c1", dense="d1", sparse="s1")
    publish("c2", dense="d2")
    publish("c3", sparse="s2")
    with applied.begin() as repository:
        generations = repository.generations("ctr")
        numbers = [(snapshot.part, snapshot.number) for snapshot in repository.snapshots("ctr")]
    assert [(g.number, g.snapshots) for g in generations] == [
        (3, {"dense": 2, "sparse": 2}),
        (2, {"dense": 2, "sparse": 1}),
        (1, {"dense": 1, "sparse": 1}),
    ]
    assert numbers == [("dense", 2), ("dense", 1), ("sparse", 2), ("sparse", 1)]


def test_an_unchanged_part_among_several_is_reused(applied, publish):
    publish("c1", dense="d1", sparse="s1")
    publish("c2", dense="d1", sparse="s2")
    with applied.begin() as repository:
        assert repository.generation("ctr", 2).snapshots == {"dense": 1, "sparse": 2}


def test_the_same_bytes_again_are_a_duplicate_that_names_the_snapshot(applied, publish):
    publish("c1", dense="d1", sparse="s1")
    publish("c2", dense="d2")
    with pytest.raises(DuplicateSnapshot, match="dense snapshot 2"):
        publish("c3", dense="d2")
    with pytest.raises(DuplicateSnapshot, match="dense snapshot 2, sparse snapshot 1"):
        publish("c3", dense="d2", sparse="s1")
    publish("c4", dense="d1")
    with applied.begin() as repository:
        assert repository.generation("ctr", 3).snapshots == {"dense": 3, "sparse": 1}


@pytest.mark.parametrize("state", [GenerationState.REFUSED, GenerationState.FAILED, GenerationState.RETIRED])
def test_the_same_bytes_may_be_published_again_where_their_generation_is_over(applied, publish, state):
    publish("c1", dense="d1", sparse="s1")
    with applied.begin("ctr") as repository:
        repository.set_generation_state("ctr", 1, state)
    again = publish("c2", dense="d1")
    with applied.begin() as repository:
        assert repository.generation("ctr", again.generation).snapshots == {"dense": 1, "sparse": 1}
    with pytest.raises(DuplicateSnapshot, match="dense snapshot 1"):
        publish("c3", dense="d1")


def test_the_same_change_id_is_one_publish(applied, publish):
    first = publish("c1", dense="d1", sparse="s1")
    assert publish("c1", dense="d1", sparse="s1") == first
    publish("c2", dense="d2")
    assert publish("c1", dense="d1", sparse="s1") == first
    with applied.begin() as repository:
        assert len(repository.generations("ctr")) == 2


def test_a_change_id_is_not_given_to_another_content_kind_or_model(applied, publish, make):
    publish("c1", dense="d1", sparse="s1")
    with pytest.raises(Conflict, match="another content of part 'dense'"):
        publish("c1", dense="other", sparse="s1")
    with applied.begin() as repository:
        repository.put_model(make.manifest("other"), expected_version=None)
        with pytest.raises(Conflict, match="is already another change"):
            repository.publish("other", {"dense": make.source("x")}, change_id="c1")
        with pytest.raises(Conflict, match="already a publish"):
            repository.add_change("ctr", ChangeKind.ROLLBACK, change_id="c1")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "at least one part"),
        ({"dense": "d", "sparse": "s", "deep": "x"}, "no such part; allowed: dense, sparse"),
        ({"dense": "d"}, "sparse of model 'ctr' has no snapshot yet"),
    ],
)
def test_a_publish_that_cannot_make_a_generation_is_refused_whole(applied, publish, parts, message):
    with pytest.raises(InvalidInput, match=message):
        publish("c1", **parts)
    with applied.begin() as repository:
        assert repository.snapshots("ctr") == ()
        assert repository.changes("ctr") == ()


@pytest.mark.parametrize("change_id", ["", "x" * 201])
def test_a_change_id_has_a_length(publish, change_id):
    with pytest.raises(InvalidInput, match="1 to 200 characters"):
        publish(change_id, dense="d", sparse="s")


def test_an_unknown_or_retired_model_takes_no_publish(applied, publish, make):
    with applied.begin() as repository, pytest.raises(NotFound, match="known: ctr"):
        repository.publish("ctx", {"dense": make.source("x")}, change_id="c1")
    with applied.begin() as repository:
        repository.update_model("ctr", retired=True)
    with pytest.raises(Conflict, match="retired"):
        publish("c1", dense="d", sparse="s")


@pytest.mark.parametrize("state", [ChangeState.RECORDED, ChangeState.QUEUED, ChangeState.RUNNING])
def test_a_model_with_an_open_retirement_takes_no_publish(applied, publish, state):
    earlier = publish("c1", dense="d", sparse="s")
    with applied.begin() as repository:
        repository.add_change("ctr", ChangeKind.RETIRE, change_id="r")
        repository.update_change("r", state=state, reason=Reason.FROZEN)
    with pytest.raises(Conflict, match="is to be retired by change r"):
        publish("c2", dense="d2", sparse="s2")
    assert publish("c1", dense="d", sparse="s") == earlier
    with applied.begin() as repository:
        assert len(repository.generations("ctr")) == 1
        repository.update_change("r", state=ChangeState.ROLLED_BACK)
    assert publish("c2", dense="d2", sparse="s2").generation == 2


def test_a_part_that_the_manifest_dropped_leaves_the_generation(applied, publish, make):
    publish("c1", dense="d1", sparse="s1")
    with applied.begin() as repository:
        repository.put_model(make.manifest(parts=("dense",)), expected_version=None)
    publish("c2", dense="d2")
    with applied.begin() as repository:
        assert repository.generation("ctr", 2).snapshots == {"dense": 2}


def test_absent_snapshots_and_generations_name_what_is_there(applied, publish):
    with applied.begin() as repository:
        with pytest.raises(NotFound, match="nothing is published yet"):
            repository.generation("ctr", 1)
        with pytest.raises(NotFound, match="no snapshot 1 of part 'dense'"):
            repository.snapshot("ctr", "dense", 1)
    publish("c1", dense="d1", sparse="s1")
    with applied.begin() as repository:
        for number in (0, 2, -1, 2**63, 10**30):
            with pytest.raises(NotFound, match=r"it has 1\.\.1"):
                repository.generation("ctr", number)
            with pytest.raises(NotFound, match=r"dense 1\.\.1, sparse 1\.\.1"):
                repository.snapshot("ctr", "dense", number)


def test_one_generation_serves_and_the_former_one_is_kept_warm(applied, publish):
    publish("c1", dense="d1", sparse="s1")
    publish("c2", dense="d2")
    with applied.begin("ctr") as repository:
        first = repository.set_generation_state("ctr", 1, GenerationState.SERVING)
        assert repository.set_generation_state("ctr", 1, GenerationState.SERVING).serving_at == first.serving_at
        repository.set_generation_state("ctr", 2, GenerationState.SERVING)
        states = {g.number: g.state for g in repository.generations("ctr")}
    assert states == {1: GenerationState.WARM, 2: GenerationState.SERVING}
    assert first.serving_at.utcoffset().total_seconds() == 0


def test_a_refused_generation_keeps_its_reason(applied, publish):
    publish("c1", dense="d1", sparse="s1")
    with applied.begin("ctr") as repository:
        repository.set_generation_state(
            "ctr", 1, GenerationState.REFUSED, reason="NonFiniteWeights", message="dense: NaN"
        )
    with applied.begin() as repository:
        generation = repository.generation("ctr", 1)
    assert (generation.reason, generation.message) == ("NonFiniteWeights", "dense: NaN")
    assert generation.serving_at is None


def test_a_report_is_kept_and_replaced(applied, publish):
    publish("c1", dense="d1", sparse="s1")
    check = CheckResult(check="finite", subject="dense", outcome=CheckOutcome.PASSED)
    report = ValidationReport(model="ctr", generation=1, checks=(check,))
    with applied.begin("ctr") as repository:
        assert repository.report("ctr", 1) is None
        repository.save_report(report)
        repository.save_report(report.model_copy(update={"checks": (check, check)}))
        with pytest.raises(NotFound):
            repository.save_report(report.model_copy(update={"generation": 2}))
    with applied.begin() as repository:
        assert len(repository.report("ctr", 1).checks) == 2


def test_a_delta_of_any_snapshot_of_its_part_is_taken(applied, publish, make):
    publish("c1", dense="d1", sparse="s1")
    publish("c2", dense="d2")
    with applied.begin("ctr") as repository:
        repository.publish("ctr", {"dense": make.delta("x", parent=make.source("d1").manifest.digest)}, change_id="c3")
        snapshot = repository.snapshot("ctr", "dense", 3)
    assert snapshot.manifest.is_delta
    assert snapshot.manifest.parent == make.source("d1").manifest.digest


@pytest.mark.parametrize("parent", ["unknown", "s1"], ids=["unknown", "of another part"])
def test_a_delta_whose_parent_is_no_snapshot_of_its_part_is_refused_with_what_there_is(applied, publish, make, parent):
    publish("c1", dense="d1", sparse="s1")
    delta = make.delta("x", parent=make.source(parent).manifest.digest)
    refused = pytest.raises(InvalidInput, match="Publish the parent first, or a full snapshot")
    with refused as told, applied.begin("ctr") as repository:
        repository.publish("ctr", {"dense": delta}, change_id="c2")
    assert told.value.field == "parts.dense"
    assert told.value.allowed == (make.source("d1").manifest.digest,)
    with applied.begin() as repository:
        assert [g.number for g in repository.generations("ctr")] == [1]


def test_a_generation_whose_manifests_are_too_large_together_is_refused(applied, publish, monkeypatch):
    """Those of parts that are left out count, too."""
    publish("c1", dense="d1", sparse="s1")
    with applied.read() as repository:
        size = sum(len(canonical_json(repository.snapshot("ctr", part, 1).manifest)) for part in ("dense", "sparse"))
    monkeypatch.setattr("ipnext.store.changes.publications.LARGEST_MANIFESTS_BYTES", size - 1)
    with pytest.raises(InvalidInput, match=f"{size} bytes together; allowed: {size - 1}") as refused:
        publish("c2", dense="d2")
    assert refused.value.field == "parts"
    monkeypatch.setattr("ipnext.store.changes.publications.LARGEST_MANIFESTS_BYTES", size)
    assert publish("c2", dense="d2").generation == 2
