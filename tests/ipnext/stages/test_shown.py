"""What a stage answered is explained."""

import pytest

from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult, ValidationReport
from ipnext.model.lifecycle.failure_cause import Cause, Place
from ipnext.model.lifecycle.status import Reason

REFUSED = CheckResult(
    check="stage.audit",
    subject="ranker",
    outcome=CheckOutcome.REFUSED,
    reason=Reason.STAGE_REFUSED,
    message="the gap is too wide",
    evidence={"gap": 0.3},
    duration_seconds=2.25,
    source="acme 1.0 (acme:audit)",
)


@pytest.fixture
def refuse():
    """Refuse a publish as a stage does."""

    def call(rooms):
        message = "stage audit: the gap is too wide"
        rooms.refuse(1, Reason.STAGE_REFUSED, message)
        with rooms.store.begin("ranker") as unit:
            change = unit.changes("ranker", limit=1)[0]
            unit.save_report(ValidationReport(model="ranker", generation=1, checks=(REFUSED,)))
            cause = Cause(
                change=change.id, reason=Reason.STAGE_REFUSED, message=message, place=Place(step="stage audit")
            )
            unit.add_event("ranker", "StageEnded", message, detail=cause.detail)
            unit.update_model("ranker", target_generation=1)

    return call


async def test_explain_leads_to_the_stage_and_its_evidence(applied, refuse):
    await applied.publish("a")
    refuse(applied.rooms)
    answer = (await applied.http.get("/v1/models/ranker/explanation")).json()
    assert (answer["reason"], answer["message"]) == ("StageRefused", "stage audit: the gap is too wide")
    steps = [step for step in answer["chain"] if step["level"] == "step"]
    assert [step["subject"] for step in steps] == ["stage audit", "evidence"]
    assert steps[1]["message"] == '{"gap":0.3}'
    assert "take it out" not in answer["advice"]
    assert "the message names the stage and why" in answer["advice"]
