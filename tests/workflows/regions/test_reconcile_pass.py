"""One pass of the reconciler: regions are compared whatever became of the repairs."""

import asyncio
import logging

import pytest

from ipnext.model.lifecycle.regions.reconciliation import (
    FreshnessJudged,
    ReconcileInput,
    RegionReconciled,
    RepairsRecorded,
)
from tests.workflows.activity_errors import failed_activity
from workflows import policies, reconcile
from workflows.reconcile import ReconcileWorkflow


@pytest.fixture
def passes(monkeypatch):
    """Run passes one after the other, each with the answer of `record_repairs`; None: it fails.

    Returns the compared regions.
    """
    compared, answers, judged = [], [], [FreshnessJudged()]

    async def perform(step, argument, _summary):
        if step is policies.RECORD_REPAIRS:
            if (answer := answers.pop(0)) is None:
                raise failed_activity()
            return answer
        if step is policies.JUDGE_FRESHNESS:
            if isinstance(judged[0], FreshnessJudged):
                return judged[0]
            raise failed_activity()
        compared.append(argument.region)
        return RegionReconciled(region=argument.region, failed={"m": "refused"})

    monkeypatch.setattr(reconcile, "perform", perform)
    monkeypatch.setattr(reconcile.workflow, "logger", logging.getLogger("test"))
    shown = []
    monkeypatch.setattr(reconcile.workflow, "set_current_details", shown.append)

    def run(*given, known=(), fresh=judged[0]):
        answers.extend(given)
        judged[0] = fresh
        entity = ReconcileWorkflow(ReconcileInput(regions=known))
        for _ in given:
            asyncio.run(entity._pass())
        return compared, shown[-1]

    return run


def test_regions_are_compared_although_repairs_could_not_be_recorded(passes):
    compared, _ = passes(RepairsRecorded(regions=("eu", "us")), None)

    assert compared == ["eu", "us"] * 2


def test_a_run_that_continues_as_new_knows_the_regions(passes):
    compared, _ = passes(None, known=("eu",))

    assert compared == ["eu"]


def test_a_pass_shows_the_models_that_failed(passes):
    _, shown = passes(RepairsRecorded(regions=("eu",), failed={"n": "conflict"}))

    assert shown.endswith("Not done, and tried again:\n- m: refused\n- n: conflict")


def test_regions_are_compared_although_freshness_could_not_be_judged(passes):
    compared, shown = passes(RepairsRecorded(regions=("eu",)), fresh=None)

    assert compared == ["eu"]
    assert "freshness" not in shown


def test_a_pass_shows_breaches_of_freshness(passes):
    judged = FreshnessJudged(parts=3, breaches=1, failed={"o": "locked"})
    _, shown = passes(RepairsRecorded(regions=("eu",)), fresh=judged)

    assert "\n\n1 of 3 parts breach their freshness\n\nNot done" in shown
    assert "- o: locked" in shown
