"""A change on the command line, as a user reads it."""

import json
import re

import pytest

from ipnext.model.lifecycle.changes.change_stages import begin_stages, end_stage
from ipnext.model.lifecycle.changes.stage_order import ComposedStage, StageCall

AUDIT = StageCall(
    runs="activity",
    source="fairness-audit 1.0 (fairness:AUDIT)",
    queue="fairness",
    schedule_to_close_seconds=9,
    attempts=1,
)


@pytest.fixture(autouse=True)
def ranker(live):
    live.rooms.seed("ranker")


@pytest.fixture
def stages(live):
    """A publish `ranker-x` that has ended two of its four stages."""
    live.rooms.publish_directly("ranker", "x")
    order = [ComposedStage(name=name) for name in ("metadata", "audit", "planning", "transition")]
    order[1] = order[1].model_copy(update={"call": AUDIT})
    with live.rooms.store.begin() as unit:
        unit.begin_stages("ranker", "ranker-x", begin_stages(order, unit.now()))
        unit.note_stages("ranker", "ranker-x", lambda stages, at: end_stage(stages, "metadata", at))
        unit.note_stages("ranker", "ranker-x", lambda stages, at: end_stage(stages, "audit", at, message="fair\x1b[2J"))


def stage_lines(text):
    return [" ".join(line.split()[:2]) for line in text.partition("stages of")[2].splitlines()[2:6]]


def test_a_change_is_described_with_each_stage(run, stages):
    told = run("describe", "change", "ranker-x").stdout
    assert re.search(r"kind +publish", told)
    assert re.search(r"audit +passed +0\.\d s +fair\S+ +fairness-audit 1\.0", told)
    assert "\x1b" not in told
    assert stage_lines(told) == ["metadata passed", "audit passed", "planning running", "transition to"]
    assert re.search(r"planning +running +\d+s so far", told)


def test_a_model_is_described_with_the_stages_of_its_open_change(run, stages):
    told = run("describe", "ranker").stdout
    assert "stages of publish ranker-x" in told
    assert stage_lines(told)[2:] == ["planning running", "transition to"]


def test_programs_get_what_the_api_answers(run, stages):
    answer = json.loads(run("describe", "change", "ranker-x", "-o", "json").stdout)
    assert [stage["state"] for stage in answer["stages"]] == ["passed", "passed", "running", "to_come"]
    assert answer["id"] == "ranker-x"


def test_a_change_that_has_not_begun_has_no_stages(run, live):
    live.rooms.publish_directly("ranker", "y")
    assert "stages of" not in run("describe", "change", "ranker-y").stdout
    assert "stages of" not in run("describe", "ranker").stdout


def test_a_change_that_is_not_there_is_named(run):
    assert "nothing-such" in run("describe", "change", "nothing-such", status=2).stderr
