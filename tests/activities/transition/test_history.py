"""What a step of a rollout reads does not depend on how much was ever published of the model."""

import hashlib
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import event
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.state.desired import read_facts
from activities.state.replica_sets import former_generations, wanted_deployments
from activities.state.routes.failover_shares import Survivor
from activities.state.routes.route_shares import fail_over
from activities.state.routes.routed_models import read_routed
from activities.transition.admission import not_swapped
from activities.transition.refresh_mode import refresh_of
from activities.transition.wave_context import WaveContext
from activities.validation.activities import ValidationActivities
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput, StageInput
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import FleetState, GenerationReplicas, GenerationShare, Swap, Transition, Wave
from ipnext.model.registry.registry import (
    DELTA_FILE,
    ArtifactFile,
    GenerationState,
    Signature,
    SnapshotManifest,
    SnapshotSource,
)
from ipnext.store.records import TransitionRecord
from ipnext.store.registry import generations, snapshots
from ipnext.store.tables.registry import GenerationRow, SnapshotRow

FEW, MANY = 10, 500
PART, MODEL = "table", "ranker"
SIGNATURE = Signature(inputs=(), outputs=())


def source(content, parent=None):
    path = "weights.safetensors" if parent is None else DELTA_FILE
    file = ArtifactFile(path=path, sha256=hashlib.sha256(content.encode()).hexdigest(), size_bytes=1)
    manifest = SnapshotManifest(engine="torch", signature=SIGNATURE, files=(file,), parent=parent)
    return SnapshotSource(manifest=manifest, uri=f"file:///{content}")


def digest_of_number(number):
    return source(f"s{number}").manifest.digest


def manifest():
    return parse_manifest(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": MODEL},
            "spec": {
                "parts": [{"name": PART, "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}],
                "demand": [{"region": "us-east", "qps": 50}],
                "rollout": {"keepWarm": 2},
            },
        }
    )


def state(generation):
    replicas = (GenerationReplicas.from_trusted(MODEL, PART, generation, "us-east", "cpu", 1),)
    traffic = GenerationShare.model_validate(
        {"model": MODEL, "from": "us-east", "to": "us-east", "generation": generation, "fraction": 1.0}
    )
    return FleetState(replicas=replicas, traffic=(traffic,))


def filled(house, count):
    """So many snapshots that have served one after the other.

    The last but one serves, the last one, a delta, rolls out.
    """
    with house.store.begin() as repository:
        repository.put_model(manifest(), expected_version=None)
    for start in range(1, count, 50):
        with house.store.begin(MODEL) as repository:
            for number in range(start, min(start + 50, count)):
                change = repository.publish(MODEL, {PART: source(f"s{number}")}, change_id=f"c{number}")
                repository.update_change(change.id, state=ChangeState.DONE)
                repository.set_generation_state(MODEL, number, GenerationState.SERVING)
                if number > 1:
                    repository.set_generation_state(MODEL, number - 1, GenerationState.RETIRED)
    serving = count - 1
    with house.store.begin(MODEL) as repository:
        repository.update_model(MODEL, serving_generation=serving, target_generation=count)
        parts = {PART: source(f"s{count}", parent=digest_of_number(serving))}
        change = repository.publish(MODEL, parts, change_id="last")
        held = AssignedSnapshot(
            snapshot=serving, digest=digest_of_number(serving), uri="file:///x", generations=(serving,)
        )
        repository.put_deployment(
            Deployment(
                key=DeploymentKey(model=MODEL, part=PART, region="us-east", hardware="cpu"),
                replicas=1,
                engine="torch",
                units=1,
                qps=100,
                holds=(held,),
            )
        )
        shares = (RouteShare(to="us-east", generation=serving, fraction=1.0),)
        repository.put_route(RouteTable(model=MODEL, region="us-east", revision=1, shares=shares, served=()))
        repository.save_transition(
            TransitionRecord(
                id=change.id,
                model=MODEL,
                change_id=change.id,
                generation=count,
                transition=Transition.model_validate(
                    {"from": state(serving), "to": state(count), "waves": (Wave(gate="final"),)}
                ),
                created_at=datetime.now(UTC),
            )
        )
    return house


@contextmanager
def counted(house):
    """Statements sent, rows of snapshots and generations made of what came back, and those that the session loaded."""
    found = {"statements": 0, "snapshots": 0, "generations": 0, "loaded": 0}

    def sent(*_):
        found["statements"] += 1

    def counting(kind, make):
        def made(*given, **named):
            found[kind] += 1
            return make(*given, **named)

        return made

    def loaded(*_):
        found["loaded"] += 1

    listening = (
        (house.store._engine, "before_cursor_execute", sent),
        (SnapshotRow, "load", loaded),
        (GenerationRow, "load", loaded),
    )
    for target, name, heard in listening:
        event.listen(target, name, heard)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(snapshots, "read_snapshot", counting("snapshots", snapshots.read_snapshot))
            patch.setattr(generations, "read_generation", counting("generations", generations.read_generation))
            yield found
    finally:
        for target, name, heard in listening:
            event.remove(target, name, heard)


def stage(count):
    return StageInput(model=MODEL, change_id="last", kind=ChangeKind.PUBLISH, generation=count)


def wave_step(house, count):
    wave = WaveInput(model=MODEL, transition_id="last", generation=count, index=0, deadline_seconds=60)
    with house.store.read() as repository:
        return WaveContext.read(repository, wave, "routed")


def validation(house, count):
    with house.store.read() as repository:
        return ValidationActivities(house.store, house.artifacts)._candidate(repository, stage(count))


def refreshing(house, count):
    with house.store.read() as repository:
        return refresh_of(repository, manifest(), (state(count - 1), state(count)))


def admission(house, count):
    swap = Swap(model=MODEL, part=PART, region="us-east", replicas=1, fraction=0.0)
    ends = {"from": state(count - 1), "to": state(count)}
    transition = Transition.model_validate({**ends, "waves": (), "swaps": (swap,)})
    with house.store.read() as repository:
        return not_swapped(repository, stage(count), transition)


def finish(house, count):
    result = LifecycleResult(state=ChangeState.DONE, generation=count)
    record = RecordInput(
        model=MODEL, change_id="last", kind=ChangeKind.PUBLISH, generation=count, result=result, run_id="run"
    )
    activities = DeploymentActivities(house.store, house.infrastructure)
    return ActivityEnvironment().run(activities.finish_change, record)


def delta(house, count):
    with house.store.begin(MODEL) as repository:
        return repository.publish(MODEL, {PART: source("next", parent=digest_of_number(1))}, change_id="next")


@pytest.fixture(scope="module")
def histories(kit, migrated, tmp_path_factory):
    """A database with few snapshots, and one with many."""
    found = {}
    for count in (FEW, MANY):
        house = kit.House(tmp_path_factory.mktemp(str(count)), migrated)
        house.apply_fleet()
        filled(house, count)
        house.close()
        found[count] = house.root / "ipnext.db"
    return found


@pytest.mark.parametrize("step", [wave_step, validation, refreshing, admission, finish, delta])
def test_a_step_reads_as_much_after_500_snapshots_as_after_10(kit, tmp_path_factory, histories, step):
    seen = []
    for count, file in histories.items():
        house = kit.House(tmp_path_factory.mktemp(step.__name__), file)
        with counted(house) as found:
            step(house, count)
        house.close()
        seen.append(found)
    few, many = seen
    assert many == few
    assert few["statements"] > 0
    assert step is refreshing or few["snapshots"] + few["generations"] + few["loaded"] > 0


def test_facts_hold_what_is_at_work_and_the_former_generations_that_stay_warm(house):
    filled(house, 12)
    with house.store.read() as repository:
        facts = read_facts(repository, MODEL, 12)
    assert set(facts.generations) == {12, 11, 10, 9}
    assert {number for _, number in facts.snapshots} == {12, 11, 10, 9}
    assert former_generations(facts, {11, 12}) == (10, 9)


def test_a_step_tells_hosts_what_the_whole_history_would(house):
    """With every generation known the wanted deployments are the same."""
    filled(house, 12)
    with house.store.read() as repository:
        wave = WaveInput(model=MODEL, transition_id="last", generation=12, index=0, deadline_seconds=60)
        reaching = WaveContext.read(repository, wave, "scaled_up")
        whole = read_facts(repository, MODEL, 12, named=range(1, 13))
    assert len(whole.generations) == 12
    assert wanted_deployments(reaching.facts, reaching.state) == wanted_deployments(whole, reaching.state)


def test_a_delta_is_judged_by_its_ancestors_alone(house):
    filled(house, 5)
    with house.store.begin(MODEL) as repository:
        parent = repository.snapshot(MODEL, PART, 5)
        change = repository.publish(MODEL, {PART: source("grandchild", parent=parent.digest)}, change_id="grandchild")
    candidate = validation(house, change.generation)
    assert {snapshot.number for snapshot in candidate.published.values()} == {4, 5}


def test_a_delta_of_nothing_is_refused_with_the_newest_digests_and_no_list_of_all(house):
    filled(house, 12)
    with house.store.begin(MODEL) as repository, pytest.raises(Exception, match="does not have") as caught:
        repository.publish(MODEL, {PART: source("next", parent="f" * 64)}, change_id="next")
    newest = [source("s12", parent=digest_of_number(11)).manifest.digest, digest_of_number(11), digest_of_number(10)]
    assert list(caught.value.allowed) == newest


def test_what_sends_users_elsewhere_is_read_by_as_many_queries_for_many_models_as_for_one(house):
    models = [f"m{number}" for number in range(40)]
    for model in models:
        serving(house, model)
    seen = []
    for some in (models[:1], models):
        with counted(house) as found, house.store.read() as repository:
            facts = read_routed(repository, some)
        assert [each.model for each in facts] == some
        seen.append(found["statements"])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("read", [lambda found: read_routed(found, ["m"])[0], lambda found: read_facts(found, "m", 0)])
def test_users_of_a_lost_region_go_to_what_serves_where_the_region_left_does_not_hold_what_they_had(house, read):
    serving(house, "m")
    with house.store.read() as repository:
        facts = replace(read(repository), lost=frozenset({"us-east"}))
    shares = {"eu-west": (RouteShare(to="us-east", generation=9, fraction=1.0),)}
    able = [Survivor("eu-west", 1, 10.0), Survivor("eu-west", 3, 20.0)]
    assert fail_over(facts, shares, able) == {"eu-west": (RouteShare(to="eu-west", generation=1, fraction=1.0),)}


def serving(house, model):
    """A model that serves in both regions, by one plain generation."""
    with house.store.begin() as repository:
        document = manifest().model_dump(mode="json", by_alias=True, exclude_none=True)
        document["metadata"]["name"] = model
        repository.put_model(parse_manifest(document), expected_version=None)
        repository.publish(model, {PART: source(f"{model}-1")}, change_id=f"{model}-1")
        repository.update_model(model, serving_generation=1)
        shares = (RouteShare(to="us-east", generation=1, fraction=1.0),)
        for region in ("us-east", "eu-west"):
            repository.put_route(RouteTable(model=model, region=region, revision=1, shares=shares, served=()))
