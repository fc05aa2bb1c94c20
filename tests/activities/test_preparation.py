"""One activity does what it can of a change's stages, and leaves the rest to theirs."""

from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from temporalio.testing import ActivityEnvironment

from activities import preparation
from activities.deployment.freeze_activities import FreezeActivities
from activities.metadata.activities import MetadataActivities
from activities.metadata.prefetch import SnapshotPrefetcher
from activities.planning.activities import PlanningActivities
from activities.planning.solver import LaterSolver, ThreadSolver
from activities.preparation import PreparationActivities
from activities.runtime.owner_turns import OwnerShares
from activities.transition.activities import TransitionActivities
from activities.validation.activities import ValidationActivities
from activities.validation.validator import FunctionValidator, pass_check
from ipnext.artifacts.signing import write_key_pair
from ipnext.errors import ArtifactMissing, RegionUnreachable, Unavailable
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.preparation import PreparationInput
from ipnext.model.manifest.freeze import FreezeManifest
from tests.waiting import until

STAGES = ("metadata", "validation", "optimization", "freeze", "planning", "transition")
ANSWERS = ("resolved", "validated", "thawed", "planned", "transition")


PLANNING = partial(PlanningActivities, solver=ThreadSolver())


class Busy(PlanningActivities):
    def place_model(self, _):
        msg = "other plans were adopted all the time; trying again"
        raise Unavailable(msg)


@pytest.fixture
def prepared(house):
    """Prepare the publish of `value` in a model of its own."""

    def prepare(value=1.0, *, validators=(), planning=PLANNING, stages=STAGES, sources=None, shares=None, **spec):
        house.apply("ranker", **spec)
        change = house.publish("ranker", 1, value=value, **(sources or {}))
        stage = StageInput(model="ranker", change_id=change.id, kind=ChangeKind.PUBLISH, generation=1)
        activities = PreparationActivities(
            MetadataActivities(house.store, house.artifacts),
            ValidationActivities(house.store, house.artifacts, validators=validators, shares=shares),
            FreezeActivities(house.store),
            planning(house.store),
            TransitionActivities(house.store, house.infrastructure),
            SnapshotPrefetcher(house.store, house.infrastructure),
        )
        asked = PreparationInput(stage=stage, stages=stages)
        return ActivityEnvironment().run(activities.prepare_change, asked)

    return prepare


@contextmanager
def held(shares, owner):
    """Hold a slot for an owner."""
    with ExitStack() as stack:
        ActivityEnvironment().run(lambda: stack.enter_context(shares.hold(owner)))
        yield


def answers(prepared):
    return [name for name in ANSWERS if getattr(prepared, name) is not None]


def freeze(house):
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    windows = [{"start": now - timedelta(days=1), "end": now + timedelta(days=1)}]
    spec = {"reason": "the shop is full", "windows": windows, "scope": {"models": ["ranker"]}, "kinds": ["publish"]}
    manifest = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "sale"}, "spec": spec}
    with house.store.begin() as unit:
        unit.put_freeze(FreezeManifest.model_validate(manifest), expected_version=None)


def deployed(house, region):
    key = DeploymentKey(model="ranker", part="dense", region=region, hardware="cpu")
    held = AssignedSnapshot(snapshot=1, digest="d", uri="file:///x", generations=(1,))
    deployment = Deployment(key=key, engine="torch", replicas=1, holds=(held,), units=1.0, qps=100.0)
    with house.store.begin("ranker") as unit:
        unit.put_deployment(deployment)


def test_a_publish_comes_as_far_as_its_waves(prepared, house):
    found = prepared()

    assert answers(found) == list(ANSWERS)
    with house.store.read() as unit:
        assert unit.transition(found.transition.transition_id).transition.waves
        assert unit.placement("ranker").plan_id == found.planned.plan_id


def test_a_refused_validation_is_the_last_answer(prepared, house):
    found = prepared(value=float("nan"))

    assert answers(found) == ["resolved", "validated"]
    assert found.validated.refusal.check == "finite-weights"
    with house.store.read() as unit:
        assert unit.placement("ranker") is None


def test_checks_that_ipnext_does_not_bring_have_an_activity_of_their_own(prepared):
    slow = FunctionValidator("slow", lambda _: [pass_check("slow", "ranker")])
    assert answers(prepared(validators=(slow,))) == ["resolved"]


def test_large_snapshots_are_validated_by_an_activity_of_its_own(prepared, monkeypatch):
    monkeypatch.setattr(preparation, "VALIDATED_BYTES", 1)
    assert answers(prepared()) == ["resolved"]


def test_a_validation_beyond_its_owners_share_has_an_activity_of_its_own(prepared):
    shares = OwnerShares({ActivityEnvironment().info.task_queue: 1})
    with held(shares, "default"):
        assert answers(prepared(shares=shares)) == ["resolved"]
    with held(shares, "another"):
        assert "validated" in answers(prepared(shares=shares))


def test_a_large_model_is_placed_by_an_activity_of_its_own_which_is_no_failure(prepared, house, monkeypatch):
    monkeypatch.setattr("activities.planning.activities.SMALL_CELLS", 1)
    found = prepared(planning=partial(PlanningActivities, solver=LaterSolver()))
    assert answers(found) == ["resolved", "validated", "thawed"]
    with house.store.read() as unit:
        assert not any(change.message for change in unit.changes("ranker"))


def test_what_a_freeze_holds_is_not_planned(prepared, house):
    freeze(house)
    assert answers(prepared()) == ["resolved", "validated"]


def test_a_stage_that_fails_is_left_to_its_own_activity(prepared):
    assert answers(prepared(planning=partial(Busy, solver=ThreadSolver()))) == ["resolved", "validated", "thawed"]


def test_what_does_not_pass_is_raised_as_by_the_stage_itself(prepared, house):
    """Its own activity would note it a second time."""

    def missing(uri):
        msg = f"snapshot {uri} is not there, or was never committed"
        raise ArtifactMissing(msg)

    house.artifacts.manifest = missing
    with pytest.raises(ArtifactMissing):
        prepared()


def test_what_can_not_be_placed_is_told_and_no_way_is_planned(prepared):
    found = prepared(
        demand=[{"region": "us-east", "qps": 350}],
        parts=[
            {"name": part, "engine": "torch", "hardware": [{"kind": "cpu", "units": 10_000, "qps": 1}]}
            for part in ("sparse", "dense")
        ],
    )
    assert answers(found) == ["resolved", "validated", "thawed", "planned"]
    assert not found.planned.feasible


def test_only_the_stages_that_are_asked_for(prepared):
    assert answers(prepared(stages=STAGES[:4])) == ["resolved", "validated", "thawed"]


def test_regions_that_run_the_model_are_told_what_will_come(prepared, house):
    house.apply("ranker")
    deployed(house, "us-east")
    prepared()

    with house.store.read() as unit:
        uris = {unit.snapshot("ranker", part, 1).uri for part in ("sparse", "dense")}
    until(
        lambda: set(house.infrastructure.list_prefetched("us-east")) == uris, why=lambda: "both snapshots are fetched"
    )
    assert house.infrastructure.list_prefetched("eu-west") == ()


def test_a_region_that_is_away_is_not_waited_for(prepared, house, monkeypatch):
    told = []

    def away(region, uris):
        told.append(region)
        msg = f"region {region!r} can't be reached"
        raise RegionUnreachable(msg)

    house.apply("ranker")
    deployed(house, "us-east")
    monkeypatch.setattr(house.infrastructure, "prefetch", away)

    assert answers(prepared()) == list(ANSWERS)
    until(lambda: told == ["us-east"], why=lambda: "the region was told")


@pytest.fixture
def steps(monkeypatch):
    """What happens to a publish, in order: fetching ahead, and the validation that reads every file."""
    found = []
    monkeypatch.setattr(SnapshotPrefetcher, "begin", lambda *_: found.append("fetched ahead"))
    validate = ValidationActivities.validate_generation

    def validated(self, stage):
        found.append("validated")
        return validate(self, stage)

    monkeypatch.setattr(ValidationActivities, "validate_generation", validated)
    return found


def test_a_good_publish_is_fetched_while_its_files_are_read(prepared, steps):
    prepared()
    assert steps == ["fetched ahead", "validated"]


def test_a_large_one_is_fetched_while_an_activity_of_its_own_validates_it(prepared, steps, monkeypatch):
    monkeypatch.setattr(preparation, "VALIDATED_BYTES", 1)
    prepared()
    assert steps == ["fetched ahead"]


@pytest.mark.parametrize(
    "more",
    [
        {"library.so.txt.so": b"\x7fELF"},
        {"weights.safetensors": b"\xff" * 64},
        {"weights.safetensors": b"\x02\0\0\0\0\0\0\0[]"},
    ],
    ids=["format", "header beyond the file", "no header"],
)
def test_what_can_be_refused_unread_is_not_fetched_ahead(prepared, house, kit, steps, more):
    found = prepared(sources={"dense": house.source(kit.DENSE, kit.weights(1), more=more)})
    assert steps == ["validated"]
    assert found.validated.refusal is not None


def test_what_nobody_signed_is_not_fetched_ahead(prepared, steps, tmp_path):
    write_key_pair(tmp_path / "ci.pem", tmp_path / "ci.pub.pem")
    signers = {"publicKeys": [(tmp_path / "ci.pub.pem").read_text()]}
    found = prepared(validation={"signers": signers})
    assert steps == ["validated"]
    assert found.validated.refusal.check == "signature"


def test_another_engine_than_the_manifests_is_not_fetched_ahead(prepared, house, kit, steps):
    prepared(sources={"dense": house.source(kit.DENSE, kit.weights(1), engine="vllm")})
    assert steps == ["validated"]


def test_what_can_not_be_told_is_not_fetched_ahead(prepared, house, steps, monkeypatch):
    def unavailable(_):
        msg = "the artifact store does not answer"
        raise Unavailable(msg)

    monkeypatch.setattr(house.artifacts, "open_blob", unavailable)
    prepared()
    assert steps == ["validated"]
