"""Waves are searched beside the writers, and written only if all that they were planned by still holds."""

from contextlib import contextmanager

import pytest
from temporalio.testing import ActivityEnvironment

from activities.planning.activities import PlanningActivities
from activities.planning.solver import ThreadSolver
from activities.transition import activities as transition
from activities.transition import draft as drafting
from activities.transition.activities import DRAFTS, TransitionActivities
from activities.transition.draft import Draft
from ipnext.errors import Unavailable
from ipnext.model.lifecycle import ChangeKind, StageInput
from ipnext.model.rollout import TransitionState


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
