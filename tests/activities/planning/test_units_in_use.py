"""Units that models under way need at most: read for all of them at once, and counted slot by slot."""

from contextlib import contextmanager

import pytest
from sqlalchemy import event
from temporalio.testing import ActivityEnvironment

from activities.planning.activities import PlanningActivities
from activities.planning.problem import model_as_served, units_in_use, units_of
from activities.planning.solver import ThreadSolver
from activities.state.desired import read_facts
from activities.state.replica_sets import wanted_deployments
from activities.state.wave_state import peak, state_of
from activities.transition.activities import TransitionActivities
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput


@pytest.fixture
def move(house):
    """Publish a model and plan its waves; the fixture answers the change's id."""

    def call(name, **spec):
        house.apply(name, **spec)
        change = house.publish(name, 1)
        stage = StageInput(model=name, change_id=change.id, kind=ChangeKind.PUBLISH, generation=1)
        env = ActivityEnvironment()
        env.run(PlanningActivities(house.store, ThreadSolver()).place_model, stage)
        assert env.run(TransitionActivities(house.store, house.infrastructure).plan_transition, stage).refused is None
        return change.id

    return call


@contextmanager
def statements(house):
    sent = []

    def add(_connection, _cursor, statement, *_):
        sent.append(statement)

    event.listen(house.store._engine, "before_cursor_execute", add)
    yield sent
    event.remove(house.store._engine, "before_cursor_execute", add)


def in_use(house, *, but="another"):
    with house.store.read() as repository:
        return units_in_use(repository, but=but)


def one_by_one(house, *changes):
    """The same, each model by itself: of each replica set the most of now, of the plan and of the way."""
    used = {}
    with house.store.read() as repository:
        for change_id in changes:
            record = repository.transition(change_id)
            model, running = record.model, repository.deployments(record.model)
            placed = repository.placement(model)
            units = dict(units_of(model_as_served(repository, model, record.generation), running, placed))
            for d in running:
                units[d.key.part, d.key.hardware] = max(units[d.key.part, d.key.hardware], d.units)
            counts = {(d.key.part, d.key.region, d.key.hardware): d.replicas for d in running}
            rows = {(row.part, row.region, row.hardware): row.count for row in placed.replicas}
            way = peak(record.transition, model)
            for slot in counts.keys() | rows.keys() | way.keys():
                most = max(found.get(slot, 0) for found in (counts, rows, way))
                cell = slot[1:]
                used[cell] = used.get(cell, 0.0) + most * units[slot[0], slot[2]]
    return used


def test_as_many_statements_are_sent_for_many_models_under_way_as_for_one(house, move):
    small = {"demand": [{"region": "us-east", "qps": 1}]}
    move("m0", **small)
    with statements(house) as few:
        in_use(house)
    for number in range(1, 4):
        move(f"m{number}", **small)
    with statements(house) as many:
        in_use(house)
    assert len(many) == len(few)


def test_models_under_way_count_with_the_most_of_now_of_the_plan_and_of_the_way(house, move):
    changes = [move("ranker"), move("other", demand=[{"region": "us-east", "qps": 90}])]
    assert in_use(house) == pytest.approx(one_by_one(house, *changes))
    with house.store.begin("ranker") as repository:
        key = DeploymentKey(model="ranker", part="dense", region="us-east", hardware="cpu")
        repository.put_deployment(Deployment(key=key, engine="torch", replicas=17, units=2.0, qps=1.0))
    assert in_use(house) == pytest.approx(one_by_one(house, *changes))
    assert in_use(house)["us-east", "cpu"] >= 17
    assert in_use(house, but="ranker") == pytest.approx(one_by_one(house, changes[1]))


@pytest.mark.parametrize("factor", [0.01, 100])
def test_a_manifest_that_changes_on_the_way_changes_no_units_before_a_plan_by_it(house, move, factor):
    """It may be refused yet: few units in it would give others what the model takes, many would keep others waiting."""
    change = move("ranker")
    before = in_use(house)
    with house.store.begin("ranker") as repository:
        written = repository.model("ranker").manifest
        parts = tuple(
            part.model_copy(
                update={"hardware": tuple(o.model_copy(update={"units": factor * o.units}) for o in part.hardware)}
            )
            for part in written.spec.parts
        )
        spec = written.spec.model_copy(update={"parts": parts})
        repository.put_model(written.model_copy(update={"spec": spec}), expected_version=None)
    assert in_use(house) == pytest.approx(before)
    assert in_use(house) == pytest.approx(one_by_one(house, change))
    with house.store.read() as repository:
        record = repository.transition(change)
        facts = read_facts(repository, "ranker", 1)
    started = wanted_deployments(facts, state_of(record.transition.to, "ranker"))
    assert {deployment.units for deployment in started} == {1}


def test_a_model_whose_change_has_ended_counts_with_its_placement(house, move):
    change = move("ranker")
    with house.store.begin("ranker") as repository:
        repository.update_change(change, state=ChangeState.DONE)
        needed = repository.units_needed(but=())
    assert in_use(house) == needed
