"""A manifest that a validation refused, and how long a report may become."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.planning.replan import fleet_snapshot
from activities.validation.activities import ValidationActivities
from activities.validation.runs import LONGEST_TEXT, MOST_CHECKS, MOST_RESULTS, abridge_results
from activities.validation.validator import fail_check, pass_check
from ipnext.errors import FenceLost
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import Limits, Objective
from ipnext.model.registry.registry import GenerationState

ACCEPTED, REFUSED, MENDED = 350.0, 4000.0, 400.0


def demanding(qps, **validation):
    return {"demand": [{"region": "us-east", "qps": qps}], "validation": validation}


@pytest.fixture
def validate(house):
    """Validate the generation that serves by the manifest as it is now; return whether it was accepted."""
    activities = ValidationActivities(house.store, house.artifacts)

    def run():
        stage = StageInput(model="ranker", change_id="ranker-apply", kind=ChangeKind.APPLY, generation=1)
        return ActivityEnvironment().run(activities.validate_generation, stage).refusal is None

    return run


@pytest.fixture
def serving(house, validate):
    """Generation 1 serves, placed by the accepted manifest."""
    house.apply("ranker", **demanding(ACCEPTED))
    house.publish("ranker", 1)
    assert validate()
    place(house)
    with house.store.begin("ranker") as unit:
        unit.set_generation_state("ranker", 1, GenerationState.SERVING)
        unit.update_model("ranker", serving_generation=1, observed_generation=1)


def place(house):
    from activities.planning.activities import PlanningActivities  # noqa: PLC0415 - it imports the planner
    from activities.planning.solver import ThreadSolver  # noqa: PLC0415

    stage = StageInput(model="ranker", change_id="ranker-p1", kind=ChangeKind.PUBLISH, generation=1)
    with house.store.begin("ranker") as unit:
        assert unit.change("ranker-p1").generation == 1
    assert ActivityEnvironment().run(PlanningActivities(house.store, ThreadSolver()).place_model, stage).feasible


def planned_demand(house):
    with house.store.read() as unit:
        problem = fleet_snapshot(unit, Objective(), Limits()).problem
    (model,) = problem.models
    return [item.qps for item in model.demand]


def signers(tmp_path):
    from ipnext.artifacts.signing import write_key_pair  # noqa: PLC0415

    write_key_pair(tmp_path / "ci.pem", tmp_path / "ci.pub.pem")
    return {"publicKeys": [(tmp_path / "ci.pub.pem").read_text()]}


def test_a_manifest_that_is_refused_changes_no_replan_and_one_that_a_change_is_planned_by_does(
    house, serving, validate, tmp_path
):
    house.apply("ranker", **demanding(REFUSED, signers=signers(tmp_path)))
    assert not validate()
    assert planned_demand(house) == [ACCEPTED]
    house.apply("ranker", **demanding(MENDED))
    assert planned_demand(house) == [ACCEPTED], "nothing was accepted yet"
    assert validate()
    assert planned_demand(house) == [ACCEPTED], "a freeze may hold the change for days"
    place(house)
    assert planned_demand(house) == [MENDED]


def test_a_late_run_of_a_change_that_has_ended_puts_no_manifest_in_force(house, serving, validate):
    house.apply("ranker", **demanding(MENDED))
    assert validate()
    with house.store.begin("ranker") as unit:
        unit.update_change("ranker-p1", state=ChangeState.DONE, reason=Reason.SUCCEEDED, message="")
    with pytest.raises(FenceLost):
        place(house)
    assert planned_demand(house) == [ACCEPTED]


def test_a_bad_snapshot_says_nothing_of_a_manifest_that_serves(house, serving, validate):
    with house.store.begin("ranker") as unit:
        unit.refuse_revision("ranker", 1)
        assert unit.model("ranker").refused_generation is None


def test_a_report_keeps_what_refused_and_a_bounded_number_of_results():
    many = [pass_check("digests", f"dense/{n}", "x" * 10_000) for n in range(MOST_RESULTS + 300)]
    refused = fail_check("digests", "dense/last", Reason.ARTIFACT_MISSING, "gone")
    report = tuple(abridge_results([pass_check("safe-paths", "dense"), *many, refused, *[refused] * 50]))
    assert [result.check for result in report] == ["safe-paths", *["digests"] * (MOST_RESULTS + 2)]
    assert max(len(result.message) for result in report) == LONGEST_TEXT
    assert report[-2] == refused
    assert report[-1].message == "350 more results are left out"
    others = (pass_check(f"check-{n}", "dense") for n in range(MOST_CHECKS + 300))
    assert [result.message for result in abridge_results(others)][MOST_CHECKS:] == ["300 more results are left out"]
    assert [*abridge_results(many[:5])] == [r.model_copy(update={"message": "x" * LONGEST_TEXT}) for r in many[:5]]
