"""The report of a validation in the store: its results, those of earlier validations, and faults of checks."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.validation.activities import ValidationActivities
from activities.validation.runs import ValidatorError
from activities.validation.validator import FunctionValidator, fail_check
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.checks import CheckOutcome
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GenerationState


@pytest.fixture
def validate(house):
    """Publish once, and validate the generation for a change."""
    house.apply("ranker")
    house.publish("ranker", 1)

    def run(*validators, change_id="ranker-p1"):
        activities = ValidationActivities(house.store, house.artifacts, validators=validators)
        stage = StageInput(model="ranker", change_id=change_id, kind=ChangeKind.PUBLISH, generation=1)
        return ActivityEnvironment().run(activities.validate_generation, stage)

    return run


def test_a_second_validation_reads_the_weights_no_more_and_all_digests_again(validate):
    first, again = validate(), validate()
    assert not any(each.cached for each in first.checks)
    cached = {each.check: each.cached for each in again.checks}
    assert (cached["finite-weights"], cached["digests"], cached["safe-formats"]) == (True, False, False)


def test_a_fault_is_in_the_report_and_decides_nothing(house, validate):
    with pytest.raises(ValidatorError):
        validate(FunctionValidator("mine", lambda _: 1 / 0))
    with house.store.read() as unit:
        (failed,) = [each for each in unit.report("ranker", 1).checks if not each.passed]
        assert (failed.check, failed.outcome) == ("mine", CheckOutcome.FAILED)
        assert unit.generation("ranker", 1).state is GenerationState.PENDING


def test_an_override_holds_for_its_change_alone(house, validate):
    mine = FunctionValidator("mine", lambda _: [fail_check("mine", "dense", Reason.SCHEMA_MISMATCH, "no")])
    assert validate(mine).refusals == ("mine",)
    other = house.ask("ranker", ChangeKind.APPLY, "other")
    with house.store.begin("ranker") as unit:
        unit.override_check(other.id, "mine", who="ann", reason="a fix")
    passed = validate(mine, change_id=other.id)
    assert passed.refusal is None
    with house.store.read() as unit:
        assert unit.report("ranker", 1) == passed
        assert unit.generation("ranker", 1).state is GenerationState.VALIDATED
    assert validate(mine).refusals == ("mine",)
