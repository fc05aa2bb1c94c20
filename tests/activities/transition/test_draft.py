"""Waves are searched beside the writers, and written only if all that they were planned by still holds."""

from contextlib import contextmanager

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.planning.activities import PlanningActivities
from activities.planning.solver import ThreadSolver
from activities.transition import activities as transition
from activities.transition import draft as drafting
from activities.transition.activities import DRAFTS, TransitionActivities
from activities.transition.draft import Draft
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput, StageInput
from ipnext.model.planning.transition import TransitionState
from ipnext.model.registry.registry import GenerationState


@pytest.fixture
def placed(house):
    """A model that is published and placed, and its stage."""
    house.apply("ranker")
    change = house.publish("ranker", 1)
    stage = StageInput(model="ranker", change_id=change.id, kind=ChangeKind.PUBLISH, generation=1)
    ActivityEnvironment().run(PlanningActivities(house.store, ThreadSolver()).place_model, stage)
    return stage


@pytest.fixture
def plan(house, placed):
    def call():
        return ActivityEnvironment().run(
            TransitionActivities(house.store, house.infrastructure).plan_transition, placed
        )

    return call


def stored(house, stage):
    with house.store.read() as repository:
        return repository.transition(stage.change_id)


@pytest.fixture
def drafts(monkeypatch):
    """Every draft that is read; what is in `meanwhile` happens after the first ones."""
    found, meanwhile, real = [], [], Draft.read

    def read(repository, stage):
        found.append(repository._writable)
        draft = real(repository, stage)
        if meanwhile and not repository._writable:
            meanwhile.pop(0)()
        return draft

    monkeypatch.setattr(transition.Draft, "read", read)
    return found, meanwhile


def test_waves_are_searched_in_no_unit_that_others_wait_for(plan, drafts, house, placed):
    found, _ = drafts
    planned = plan()
    assert found == [False]
    assert stored(house, placed).state is TransitionState.PLANNED
    assert planned.waves == len(stored(house, placed).transition.waves)


def test_a_change_that_is_planned_already_is_answered_without_a_write(plan, drafts, house, placed, monkeypatch):
    first = plan()
    begun = []
    begin = house.store.begin

    @contextmanager
    def watched(model=None):
        begun.append(model)
        with begin(model) as repository:
            yield repository

    monkeypatch.setattr(house.store, "begin", watched)
    assert plan() == first
    assert begun == []


@pytest.mark.parametrize("what", ["fleet", "drain", "manifest", "supply"])
def test_waves_are_searched_again_if_what_they_were_planned_by_has_changed(plan, drafts, house, kit, monkeypatch, what):
    found, meanwhile = drafts
    real, more = drafting.units_in_use, {}

    def in_use(repository, *, but):
        used = real(repository, but=but)
        return {cell: used.get(cell, 0.0) + more.get(cell, 0.0) for cell in used.keys() | more.keys()}

    def drain():
        with house.store.begin() as repository:
            repository.add_drain("eu-west", disaster=True)

    changes = {
        "fleet": lambda: house.apply_fleet(kit.FLEET.replace("units: 40", "units: 39")),
        "drain": drain,
        "manifest": lambda: house.apply("ranker", demand=[{"region": "us-east", "qps": 351}]),
        "supply": lambda: more.update({("us-east", "cpu"): 39.0, ("eu-west", "cpu"): 39.0}),
    }
    monkeypatch.setattr(drafting, "units_in_use", in_use)
    meanwhile.append(changes[what])
    if what in {"drain", "supply"}:
        with pytest.raises(Unavailable, match=r"waiting for (a plan without|supply that another model)"):
            plan()
    else:
        plan()
    assert found == [False, False]


def test_less_use_by_others_is_no_reason_to_search_again(plan, drafts, monkeypatch):
    found, meanwhile = drafts
    used = {("us-east", "cpu"): 1.0}
    monkeypatch.setattr(drafting, "units_in_use", lambda *_, **__: dict(used))
    meanwhile.append(used.clear)
    plan()
    assert found == [False]


def test_more_use_by_others_is_no_reason_where_enough_is_left(plan, drafts, house, monkeypatch):
    """A way that needs 4 and 2 replicas of two parts fits beside 1 unit of 40."""
    found, meanwhile = drafts
    used = {}
    monkeypatch.setattr(drafting, "units_in_use", lambda *_, **__: dict(used))
    meanwhile.append(lambda: used.update({("us-east", "cpu"): 1.0, ("eu-west", "cpu"): 1.0}))
    plan()
    assert found == [False]


def test_the_last_search_is_made_in_the_unit_that_writes(plan, drafts, house, kit, placed):
    """However often others come first, it comes to an end."""
    found, meanwhile = drafts
    meanwhile += [lambda n=n: house.apply_fleet(kit.FLEET.replace("units: 40", f"units: {39 - n}")) for n in range(9)]
    plan()
    assert found == [False] * DRAFTS + [True]
    assert stored(house, placed).state is TransitionState.PLANNED


@pytest.fixture
def passing(house, placed):
    """A repair, or a move, that began while generation 1 served and waits for supply.

    Then another generation serves.
    """

    def begin(kind, *, serving=1):
        with house.store.begin("ranker") as unit:
            unit.update_change(placed.change_id, state=ChangeState.DONE)
            unit.set_generation_state("ranker", 1, GenerationState.SERVING)
            unit.update_model("ranker", serving_generation=serving)
            more = {"plan_id": unit.placement("ranker").plan_id} if kind is ChangeKind.MOVE else {}
            change = unit.add_change("ranker", kind, change_id="passes", **more)
        return StageInput(model="ranker", change_id=change.id, kind=kind, generation=1)

    return begin


NOTHING_NEW = pytest.mark.parametrize("kind", [ChangeKind.MOVE, ChangeKind.REPAIR])


@NOTHING_NEW
def test_a_change_that_brings_nothing_new_never_leads_back_from_the_generation_that_serves(house, passing, kind):
    """A publish that it passed may have ended while it waited."""
    stage = passing(kind)
    with house.store.begin("ranker") as unit:
        unit.update_model("ranker", serving_generation=2)

    planned = ActivityEnvironment().run(TransitionActivities(house.store, house.infrastructure).plan_transition, stage)

    assert planned.refused == (f"generation 2 serves by now, not generation 1, which served when the {kind} began")
    assert stored(house, stage).state is TransitionState.REFUSED


@NOTHING_NEW
def test_a_generation_that_serves_while_the_waves_are_searched_counts(house, passing, drafts, kind):
    stage, (found, meanwhile) = passing(kind), drafts

    def ends():
        with house.store.begin("ranker") as unit:
            unit.update_model("ranker", serving_generation=2)

    meanwhile.append(ends)
    planned = ActivityEnvironment().run(TransitionActivities(house.store, house.infrastructure).plan_transition, stage)

    assert planned.refused is not None
    assert found == [False, False]


@NOTHING_NEW
def test_the_end_of_a_change_that_brings_nothing_new_leaves_the_serving_generation(house, passing, kind):
    passing(kind, serving=2)
    result = LifecycleResult(state=ChangeState.DONE, generation=1)
    record = RecordInput(model="ranker", change_id="passes", kind=kind, generation=1, result=result, run_id="run")

    ActivityEnvironment().run(DeploymentActivities(house.store, house.infrastructure).finish_change, record)

    with house.store.read() as unit:
        assert unit.model("ranker").serving_generation == 2
