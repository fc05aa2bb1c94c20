"""The deny-list, what it covers, and the rollbacks that it starts; on both engines."""

from datetime import timedelta

import pytest

from ipnext.errors import Conflict, InvalidInput, NotFound, SnapshotDenied
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.registry import GenerationState
from ipnext.model.registry.sources import FoundVersion, Listing, Reach
from ipnext.platform import denials
from ipnext.platform.denials import carry_out_denials
from ipnext.platform.publication import check_denial
from ipnext.store.registry import denials as stored_denials
from ipnext.store.sources.sources import WatchedSource
from tests.ipnext.store.conftest import delta_source, model_manifest, snapshot_source

pytestmark = pytest.mark.trust


def digest(content):
    return snapshot_source(content).manifest.digest


def deny(store, name, reason="poisoned"):
    with store.begin() as unit:
        denial = unit.put_denial(name, reason=reason, denied_by="ann")
    carry_out_denials(store)
    return denial


def serve(store, change, generation):
    """As the end of a change that succeeds."""
    with store.begin("ctr") as unit:
        unit.update_change(change, state=ChangeState.DONE)
        unit.set_generation_state("ctr", generation, GenerationState.SERVING)
        unit.update_model("ctr", serving_generation=generation, target_generation=generation)


def rollbacks(store):
    with store.read() as unit:
        changes = [each for each in unit.changes("ctr") if each.kind is ChangeKind.ROLLBACK]
        return [(each.generation, each.state.value) for each in reversed(changes)]


def covered(store, model="ctr"):
    with store.read() as unit:
        return {key: denial.digest for key, denial in unit.denied_snapshots(model).items()}


@pytest.fixture
def served(applied, publish):
    """Generations 1 and 2; the second one serves."""
    publish("c1", dense="a", sparse="x")
    serve(applied, "c1", 1)
    publish("c2", dense="b")
    serve(applied, "c2", 2)
    return applied


def test_a_denial_keeps_its_first_reason_and_comes_back_in_pages(store):
    for number in range(3):
        deny(store, f"{number}" * 64, reason=f"r{number}")
    assert deny(store, "1" * 64, reason="another").reason == "r1"
    with store.read() as unit:
        first = unit.denial_page(limit=2)
        rest = unit.denial_page(after=first.next, limit=2)
        assert [each.reason for each in (*first.items, *rest.items)] == ["r2", "r1", "r0"]
        assert unit.denial("2" * 64).denied_by == "ann"
        with pytest.raises(NotFound, match="is not denied"):
            unit.denial("9" * 64)


def test_the_list_has_an_end(store, monkeypatch):
    monkeypatch.setattr(stored_denials, "MOST_DENIALS", 2)
    deny(store, "1" * 64)
    deny(store, "2" * 64)
    with store.begin() as unit, pytest.raises(InvalidInput, match="2 are denied; allowed: 2"):
        unit.put_denial("3" * 64, reason="r", denied_by="ann")


def test_a_snapshot_is_covered_by_its_digest_and_by_that_of_a_file(served):
    deny(served, digest("a"))
    assert covered(served) == {("dense", 1): digest("a")}
    file = snapshot_source("x").manifest.files[0].sha256
    deny(served, file)
    assert covered(served) == {("dense", 1): digest("a"), ("sparse", 1): file}


def test_what_was_made_from_a_denied_snapshot_is_covered_at_any_distance(served):
    first = delta_source("c", parent=digest("b"))
    second = delta_source("d", parent=first.manifest.digest)
    with served.begin("ctr") as unit:
        unit.publish("ctr", {"dense": first}, change_id="c3")
        unit.publish("ctr", {"dense": second}, change_id="c4")
    deny(served, digest("b"))
    assert covered(served) == dict.fromkeys([("dense", 2), ("dense", 3), ("dense", 4)], digest("b"))
    later = delta_source("e", parent=second.manifest.digest)
    with served.read() as unit, pytest.raises(SnapshotDenied, match="is denied: poisoned"):
        check_denial(unit, later.manifest, "parts.dense")


def note_version(store, place, read, tags=()):
    """A source of `ctr` that read a snapshot from a place."""
    spec = SourceSpec.model_validate({"name": "feed", "part": "dense", "oci": {"repository": "r.example.com/a"}})
    watched = WatchedSource(spec=spec, part="dense", upstream="r.example.com/a:latest", reach=Reach.SHARED)
    with store.begin("ctr") as unit:
        unit.put_sources("ctr", [watched])
    with store.begin("ctr") as unit:
        (source,) = unit.sources("ctr")
        found = FoundVersion(key=f"1:{place}", place=place, tags=dict(tags))
        unit.note_listing(source, Listing(cursor="1", versions=(found,)))
        (version,) = unit.pending_versions("ctr")
        unit.note_read(version.ordinal, read)


def test_what_came_in_a_denied_image_is_covered(served):
    image = "7" * 64
    note_version(served, f"sha256:{image}", digest("b"))
    deny(served, image)
    assert covered(served) == {("dense", 2): image}


@pytest.mark.parametrize("other", ["a", "q"])
def test_other_models_and_other_snapshots_are_not_covered(served, other):
    with served.begin() as unit:
        unit.put_model(model_manifest("ads"), expected_version=None)
    with served.begin("ads") as unit:
        unit.publish("ads", {"dense": snapshot_source("q"), "sparse": snapshot_source("p")}, change_id="d1")
    deny(served, digest(other))
    assert bool(covered(served)) == (other == "a")
    assert bool(covered(served, "ads")) == (other == "q")


def test_an_admitted_manifest_is_judged_by_digest_file_and_parent(store):
    deny(store, digest("a"))
    with store.read() as unit:
        with pytest.raises(SnapshotDenied, match=r"parts\.dense: snapshot .* can't serve"):
            check_denial(unit, snapshot_source("a").manifest, "parts.dense")
        with pytest.raises(SnapshotDenied):
            check_denial(unit, delta_source("z", parent=digest("a")).manifest, "parts.dense")
        check_denial(unit, snapshot_source("b").manifest, "parts.dense")
    deny(store, snapshot_source("c").manifest.files[0].sha256)
    with store.read() as unit, pytest.raises(SnapshotDenied):
        check_denial(unit, snapshot_source("c").manifest, "parts.dense")


def test_the_end_of_a_denial_lets_its_snapshots_serve_again(served):
    deny(served, digest("a"))
    with served.begin() as unit:
        assert unit.end_denial(digest("a")).reason == "poisoned"
    carry_out_denials(served)
    assert covered(served) == {}
    with served.read() as unit:
        check_denial(unit, snapshot_source("a").manifest, "parts.dense")
        assert unit.models_denied() == ()


def test_an_image_that_another_version_only_mentions_covers_nothing(served):
    image = "7" * 64
    note_version(served, f"sha256:{'8' * 64}", digest("b"), tags={"base": f"sha256:{image}"})
    deny(served, image)
    assert covered(served) == {}


def test_a_snapshot_that_a_source_read_from_a_denied_image_can_not_be_published_by_hand(served):
    image = "7" * 64
    note_version(served, f"sha256:{image}", digest("q"))
    deny(served, image)
    with served.read() as unit, pytest.raises(SnapshotDenied):
        check_denial(unit, snapshot_source("q").manifest, "parts.dense")


def test_a_number_has_one_denial_even_after_its_end(store):
    first = deny(store, "1" * 64).number
    with store.begin() as unit:
        unit.end_denial("1" * 64)
    carry_out_denials(store)
    assert deny(store, "2" * 64).number > first


def test_a_denial_that_ended_notes_nothing_any_more(served):
    denial = deny(served, "9" * 64)
    with served.read() as unit:
        late = unit.find_covered(denial.model_copy(update={"digest": digest("a")}))
    with served.begin() as unit:
        unit.end_denial("9" * 64)
    with served.begin("ctr") as unit:
        unit.mark_denied("ctr", denial, late)
    assert covered(served) == {}


def test_a_digest_that_is_denied_again_before_its_end_is_carried_out_stays_denied(served):
    deny(served, digest("a"))
    with served.begin() as unit:
        unit.end_denial(digest("a"))
        unit.put_denial(digest("a"), reason="still", denied_by="ann")
    carry_out_denials(served)
    with served.read() as unit:
        assert unit.denial(digest("a")).reason == "still"
    assert covered(served) == {("dense", 1): digest("a")}


def holds(store):
    with store.read() as unit:
        return {held.snapshot: bool(held.denied) for each in unit.deployments("ctr") for held in each.holds}


def test_hosts_are_told_at_once_what_they_may_not_load_and_when_they_may_again(served):
    key = DeploymentKey(model="ctr", part="dense", region="north", hardware="cpu")
    held = tuple(
        AssignedSnapshot(snapshot=n, digest=digest(c), uri="u", generations=(n,)) for n, c in ((1, "a"), (2, "b"))
    )
    with served.begin("ctr") as unit:
        unit.put_deployment(Deployment(key=key, replicas=1, engine="torch", units=1, qps=1, holds=held))
    deny(served, digest("b"))
    assert holds(served) == {1: False, 2: True}
    with served.begin() as unit:
        unit.end_denial(digest("b"))
    carry_out_denials(served)
    assert holds(served) == {1: False, 2: False}


def test_replica_sets_of_older_facts_are_stored_with_the_denials_of_the_moment(served):
    key = DeploymentKey(model="ctr", part="dense", region="north", hardware="cpu")
    older = AssignedSnapshot(snapshot=2, digest=digest("b"), uri="u", generations=(2,))
    deny(served, digest("b"))
    with served.begin("ctr") as unit:
        unit.put_deployment(Deployment(key=key, replicas=1, engine="torch", units=1, qps=1, holds=(older,)))
    assert holds(served) == {2: True}


def test_a_part_that_a_publish_leaves_out_is_not_the_denied_one(served, publish):
    deny(served, digest("b"))
    with served.begin("ctr") as unit:
        unit.update_change(rollback_id(served), state=ChangeState.DONE)
    change = publish("c3", sparse="y")
    with served.read() as unit:
        assert unit.generation("ctr", change.generation).snapshots == {"dense": 1, "sparse": 2}


# Rollbacks


def rollback_id(store):
    with store.read() as unit:
        return next(each.id for each in unit.changes("ctr") if each.kind is ChangeKind.ROLLBACK)


def test_a_rollback_to_what_is_denied_meanwhile_is_followed_by_another_one(served, publish):
    publish("c3", dense="c")
    serve(served, "c3", 3)
    deny(served, digest("c"))
    assert rollbacks(served) == [(2, "recorded")]
    with served.begin("ctr") as unit:
        unit.update_change(rollback_id(served), state=ChangeState.RUNNING)
    deny(served, digest("b"))
    assert rollbacks(served) == [(2, "running"), (1, "recorded")]


def test_a_denied_snapshot_that_serves_starts_one_rollback(served):
    deny(served, digest("b"))
    carry_out_denials(served)
    assert rollbacks(served) == [(1, "recorded")]
    with served.read() as unit:
        assert [each.kind for each in unit.events("ctr")].count("DeniedRollback") == 1


def test_a_denied_former_snapshot_starts_none(served):
    deny(served, digest("a"))
    assert rollbacks(served) == []


def test_a_rollback_passes_generations_that_are_denied_too(served, publish):
    publish("c3", dense="c")
    serve(served, "c3", 3)
    with served.begin() as unit:
        unit.put_denial(digest("b"), reason="poisoned", denied_by="ann")
    deny(served, digest("c"))
    assert rollbacks(served) == [(1, "recorded")]


def test_a_denied_snapshot_that_rolls_out_is_left_for_what_serves(served, publish):
    publish("c3", dense="c")
    deny(served, digest("c"))
    assert rollbacks(served) == [], "its validation refuses it"
    with served.begin("ctr") as unit:
        unit.update_change("c3", state=ChangeState.RUNNING)
    carry_out_denials(served)
    assert rollbacks(served) == [(2, "recorded")]


def test_without_a_clean_generation_it_is_said_once_and_nothing_changes(applied, publish):
    publish("c1", dense="a", sparse="x")
    serve(applied, "c1", 1)
    deny(applied, digest("x"))
    assert carry_out_denials(applied).staying == ("ctr",)
    assert rollbacks(applied) == []
    with applied.read() as unit:
        (told,) = [each.message for each in unit.events("ctr") if each.kind == "DeniedServes"]
    assert "generation 1 serves although" in told


def serving_alike(store, models, contents):
    """Models that published the same contents, each in its turn; the last one serves."""
    for model in models:
        with store.begin() as unit:
            unit.put_model(model_manifest(model, parts=("dense",)), expected_version=None)
        for number, content in enumerate(contents, start=1):
            with store.begin(model) as unit:
                change = unit.publish(model, {"dense": snapshot_source(content)}, change_id=f"{model}-{number}")
                unit.update_change(change.id, state=ChangeState.DONE)
                unit.set_generation_state(model, number, GenerationState.SERVING)
                unit.update_model(model, serving_generation=number, target_generation=number)


def test_a_pass_writes_to_few_models_and_the_next_one_goes_on(store):
    models = [f"m{number}" for number in range(4)]
    serving_alike(store, models, ["a", "b"])
    with store.begin() as unit:
        denial = unit.put_denial(digest("b"), reason="poisoned", denied_by="ann")
    found, carried_out = list[str](), list[bool]()
    while not (carried_out and carried_out[-1]):
        assert len(carried_out) < 10
        found += carry_out_denials(store, most=2).going_back
        with store.read() as unit:
            carried_out.append(unit.denial(denial.digest).is_carried_out)
    assert sorted(found) == models
    with store.begin() as unit:
        unit.end_denial(denial.digest)
    for lacking in (2, 0):
        carry_out_denials(store, most=2)
        with store.read() as unit:
            assert len(unit.models_denied()) == lacking
            assert len(unit.ended_denials()) == (1 if lacking else 0)


def test_each_model_that_stays_says_so_once_in_whichever_pass(store):
    models = [f"m{number}" for number in range(3)]
    serving_alike(store, models, ["b"])
    with store.begin() as unit:
        unit.put_denial(digest("b"), reason="poisoned", denied_by="ann")
    for _ in range(10):
        carry_out_denials(store, most=1)
    with store.read() as unit:
        told = [[each for each in unit.events(model) if each.kind == "DeniedServes"] for model in models]
        assert list(map(len, told)) == [1, 1, 1]


def test_models_that_stay_keep_no_other_one_waiting(store):
    serving_alike(store, [f"a{number}" for number in range(5)], ["b"])
    serving_alike(store, ["z"], ["a", "b"])
    with store.begin() as unit:
        unit.put_denial(digest("b"), reason="poisoned", denied_by="ann")
    passes = (carry_out_denials(store, most=2) for _ in range(400))
    assert next(found for found in passes if found.going_back).going_back == ("z",)


def test_a_rollback_that_failed_is_repeated_after_a_pause(served, monkeypatch):
    denial = deny(served, digest("b"))
    with served.begin("ctr") as unit:
        unit.update_change(f"denied-{denial.number}-ctr-1", state=ChangeState.ROLLED_BACK)
    carry_out_denials(served)
    assert rollbacks(served) == [(1, "rolled_back")]
    monkeypatch.setattr(denials, "RETRY_AFTER", timedelta(0))
    carry_out_denials(served)
    assert rollbacks(served) == [(1, "rolled_back"), (1, "recorded")]


def test_a_rollback_of_a_user_to_a_clean_generation_is_enough(served):
    with served.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.ROLLBACK, change_id="mine", generation=1)
    deny(served, digest("b"))
    assert rollbacks(served) == [(1, "recorded")]


@pytest.mark.parametrize(("reason", "leaves"), [(Reason.FROZEN, True), (None, False)])
def test_a_retirement_leaves_a_denied_snapshot_unless_it_waits_for_a_freeze(served, reason, leaves):
    with served.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.RETIRE, change_id="gone")
        unit.update_change("gone", state=ChangeState.RUNNING, reason=reason)
    deny(served, digest("b"))
    assert [to for to, _ in rollbacks(served)] == ([1] if leaves else [])


def test_a_retired_model_is_left_alone(served):
    with served.begin("ctr") as unit:
        unit.update_model("ctr", retired=True)
    deny(served, digest("b"))
    assert rollbacks(served) == []


def test_what_a_crash_left_undone_is_done_in_the_next_pass(served, monkeypatch):
    with served.begin() as unit:
        unit.put_denial(digest("b"), reason="poisoned", denied_by="ann")

    def fail(*given, **named):
        raise Conflict("the process ends here")

    monkeypatch.setattr(denials, "_leave_denied", fail)
    with pytest.raises(Conflict):
        carry_out_denials(served)
    monkeypatch.undo()
    with served.read() as unit:
        assert not unit.denial(digest("b")).is_carried_out
    carry_out_denials(served)
    assert rollbacks(served) == [(1, "recorded")]
    with served.read() as unit:
        assert unit.denial(digest("b")).is_carried_out
