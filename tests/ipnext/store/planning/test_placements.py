"""The plan in force, model by model, and what the database says it takes of the supply; on both engines."""

import importlib.util
import sys
from pathlib import Path

import pytest

from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.store.planning.placements import PreparedPlan


def _plans():
    """The builders beside this file; tests are no packages."""
    name = "ipnext_test_plans"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "test_plans.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


plan, wishes = _plans().plan, _plans().wishes

NORTH, SOUTH = ("north", "cpu"), ("south", "cpu")


def adopt(repository, record, **more):
    return repository.adopt_plan(record, expected=repository.plan_in_force_id(), **more)


def deployed(name: str, *, replicas: int, region: str = "north", units: float = 2) -> Deployment:
    key = DeploymentKey(model=name, part="dense", region=region, hardware="cpu")
    return Deployment(key=key, replicas=replicas, engine="torch", units=units, qps=100)


@pytest.fixture
def fleet(store, make):
    """Three models; a plan of the whole fleet gives them 3, 2 and 1 replicas of two units."""
    with store.begin() as repository:
        for name in ("a", "b", "c"):
            repository.put_model(make.manifest(name), expected_version=None)
        adopt(repository, plan("p1", counts={"a": 3, "b": 2, "c": 1}, unmet={"b": 7.5}))
    return store


def test_a_plan_of_the_fleet_gives_every_model_its_rows(fleet):
    with fleet.read() as repository:
        given = plan("p1", counts={"a": 3, "b": 2, "c": 1}, unmet={"b": 7.5})
        assert repository.placements() == tuple(given.placements.values())
        assert repository.placement("b").replicas[0].count == 2
        assert repository.placement("b").cost_per_hour == 6.0
        assert repository.placement("x") is None
        assert [item.qps for item in repository.unmet()] == [7.5]
        assert repository.deciding_plans() == {"a": "p1", "b": "p1", "c": "p1"}


def test_a_plan_of_one_model_leaves_all_others_and_tells_the_figures_of_the_fleet(fleet):
    with fleet.begin() as repository:
        entry = adopt(repository, plan("one", counts={"b": 5}, scope="b"))
        assert repository.deciding_plans() == {"a": "p1", "b": "one", "c": "p1"}
        assert (entry.cost_per_hour, entry.unmet_qps) == (27.0, 0.0)
        kept = repository.save_plan(plan("two", counts={"b": 6}, scope="b"))
        assert kept.cost_per_hour == 30.0


def test_a_model_whose_rows_stay_keeps_the_plan_that_decided_them(fleet):
    again = plan("p2", counts={"a": 3, "b": 4, "c": 1}).record
    noisy = again.model_copy(
        update={
            "plan": again.plan.model_copy(
                update={
                    "traffic": tuple(t.model_copy(update={"fraction": t.fraction - 1e-9}) for t in again.plan.traffic)
                }
            )
        }
    )
    with fleet.begin() as repository:
        adopt(repository, PreparedPlan.of(noisy))
        assert repository.deciding_plans() == {"a": "p1", "b": "p2", "c": "p1"}
        assert repository.placement("a").traffic[0].fraction == 1


def test_a_model_that_a_plan_of_the_fleet_leaves_out_is_gone_unless_it_is_kept(fleet):
    with fleet.begin() as repository:
        adopt(repository, plan("p2", counts={"a": 3}), keeping=("c",))
        assert repository.deciding_plans() == {"a": "p1", "c": "p1"}
        adopt(repository, plan("nothing", counts={}, scope="c"))
        assert repository.deciding_plans() == {"a": "p1"}
        assert repository.units_placed() == {NORTH: 6.0}


def test_what_others_may_hold_is_their_placement_or_what_runs_where_the_plan_does_not_know_them(fleet, make):
    with fleet.begin() as repository:
        repository.put_deployment(deployed("a", replicas=9))
        repository.put_model(make.manifest("new"), expected_version=None)
        repository.put_deployment(deployed("new", replicas=4, region="south"))
        assert repository.units_entitled(but="a") == {NORTH: 6.0, SOUTH: 8.0}
        assert repository.units_entitled(but="new") == {NORTH: 12.0}


def test_what_others_need_is_the_larger_of_placed_and_running_for_each_replica_set(fleet, make):
    with fleet.begin() as repository:
        repository.put_model(make.manifest("new"), expected_version=None)
        repository.put_deployment(deployed("a", replicas=9))
        repository.put_deployment(deployed("b", replicas=1))
        repository.put_deployment(deployed("b", replicas=1, region="south", units=0.1))
        repository.put_deployment(deployed("new", replicas=4))
        assert repository.units_needed(but=("c",)) == {NORTH: 18.0 + 4.0 + 8.0, SOUTH: 0.1}
        assert repository.units_needed(but=("a", "new")) == {NORTH: 4.0 + 2.0, SOUTH: 0.1}
        repository.put_deployment(deployed("a", replicas=3))
        repository.delete_deployment(deployed("new", replicas=4).key)
        assert repository.units_needed(but=("c",)) == {NORTH: 6.0 + 4.0, SOUTH: 0.1}


def test_owners_and_priorities_are_summed_up(store):
    both = plan("p1", counts={"a": 3, "b": 2}, unmet={"a": 1.5, "b": 2.0}).record
    models = (wishes("a", owner="ads", priority=3), wishes("b", owner="search"))
    with store.begin() as repository:
        problem = both.problem.model_copy(update={"models": models})
        adopt(repository, PreparedPlan.of(both.model_copy(update={"problem": problem})))
        assert repository.owner_figures() == {"ads": (9.0, 1.5), "search": (6.0, 2.0)}
        assert repository.unmet_by_priority() == {3.0: 1.5, 1.0: 2.0}
        assert repository.units_of_owner("ads", but="b") == {NORTH: 6.0}
        assert repository.units_of_owner("ads", but="a") == {}
