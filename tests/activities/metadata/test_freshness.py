"""One pass over the parts that ask for freshness: breaches, events, the condition, what it costs."""

from datetime import timedelta

import pytest
from temporalio.testing import ActivityEnvironment

from activities.metadata import freshness
from activities.metadata.freshness import FreshnessActivities
from ipnext.errors import Conflict
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.store.repository import Repository
from ipnext.store.unit_of_work import utc_now

WHOLE = {"name": "whole", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}


class Fleet:
    """Models of one part, whose snapshots were trained at given times."""

    def __init__(self, house, kit) -> None:
        self.house, self.kit, self.store = house, kit, house.store
        self.activities = FreshnessActivities(house.store)

    def ask(self, model="ranker", *, target="1h", objective=0.99):
        freshness = None if target is None else {"target": target, "objective": objective}
        self.house.apply(model, parts=[{**WHOLE, "freshness": freshness}], graph=None)

    def serve(self, number, hours, model="ranker", regions=("us-east",)):
        """Publish snapshot `number`, trained `hours` ago, and send all users to it."""
        source = self.house.source(self.kit.WHOLE, self.kit.weights(number))
        source = source.model_copy(update={"trained_at": utc_now() - timedelta(hours=hours)})
        with self.store.begin(model) as unit:
            change = unit.publish(model, {"whole": source}, change_id=f"{model}-{number}")
            unit.update_change(change.id, state=ChangeState.DONE)
            unit.set_generation_state(model, number, GenerationState.SERVING)
            unit.update_model(model, serving_generation=number, target_generation=number)
            for region in regions:
                shares = (RouteShare(to=region, generation=number, fraction=1.0),)
                unit.put_route(RouteTable(model=model, region=region, revision=number, shares=shares, served=()))

    def judge(self):
        return ActivityEnvironment().run(self.activities.judge_freshness, Done())

    def condition(self, model="ranker"):
        with self.store.read() as unit:
            found = unit.conditions(model)
        return next((each for each in found if each.type is ConditionType.FRESH), None)

    def events(self, model="ranker"):
        with self.store.read() as unit:
            found = unit.events(model)
        return [each for each in reversed(found) if each.kind.startswith("Freshness")]


@pytest.fixture
def fleet(house, kit):
    return Fleet(house, kit)


@pytest.fixture
def late(fleet):
    """The ranker serves a snapshot that is twice as old as its target."""
    fleet.ask()
    fleet.serve(1, hours=2)
    return fleet


def test_a_model_that_asks_for_nothing_has_no_condition(fleet):
    fleet.ask(target=None)
    fleet.serve(1, hours=2)
    assert fleet.judge().parts == 0
    assert (fleet.condition(), fleet.events()) == (None, [])


def test_a_fresh_model_has_a_true_condition_and_no_event(fleet):
    fleet.ask()
    assert fleet.judge().parts == 0, "nothing serves yet"
    fleet.serve(1, hours=0)
    found = fleet.judge()
    assert (found.parts, found.breaches) == (1, 0)
    assert (fleet.condition().status, fleet.condition().reason, fleet.events()) == ("True", Reason.FRESH, [])


def test_a_breach_begins_and_ends_with_one_event_each(late):
    for _ in range(3):
        assert late.judge().breaches == 1
    condition = late.condition()
    assert (condition.status, condition.reason) == ("False", Reason.TRAINING_LATE)
    assert "whole in us-east: snapshot 1 was trained at" in condition.message
    assert condition.message.endswith("more than 3600 s ago; training is late: no newer snapshot was published")
    (begun,) = late.events()
    assert (begun.kind, begun.detail) == ("FreshnessBreached", {"part": "whole", "region": "us-east", "snapshot": 1})
    late.serve(2, hours=0)
    for _ in range(2):
        assert late.judge().breaches == 0
    assert late.condition().status == "True"
    _, ended = late.events()
    assert ended.kind == "FreshnessRestored"
    assert ended.message.startswith("whole in us-east: snapshot 2 is fresh; the breach lasted ")


def test_each_region_breaches_by_itself(fleet):
    fleet.ask()
    fleet.serve(1, hours=2, regions=("us-east", "eu-west"))
    assert fleet.judge().breaches == 2
    assert fleet.condition().message.endswith("; and 1 more")
    fleet.serve(2, hours=0, regions=("us-east",))
    assert fleet.judge().breaches == 1
    assert "whole in eu-west" in fleet.condition().message
    assert fleet.condition().reason is Reason.SUPPLY_LATE, "it serves elsewhere"
    assert [each.kind for each in fleet.events()] == ["FreshnessBreached"] * 2 + ["FreshnessRestored"]


@pytest.mark.parametrize(("objective", "breaches"), [(0.99, 1), (0.9, 0)])
def test_the_objective_leaves_time(fleet, monkeypatch, objective, breaches):
    fleet.ask(objective=objective)
    fleet.serve(1, hours=0)
    later = utc_now() + timedelta(minutes=61)  # late for one minute of 61
    monkeypatch.setattr(Repository, "now", lambda _: later)
    assert fleet.judge().breaches == breaches
    assert fleet.condition().status == ("False" if breaches else "True")


def test_the_cause_of_a_breach_is_looked_for_again(late):
    late.judge()
    source = late.house.source(late.kit.WHOLE, late.kit.weights(2))
    with late.store.begin("ranker") as unit:
        unit.publish("ranker", {"whole": source}, change_id="waits")
        unit.update_change("waits", state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen until 18:00")
    since = late.condition().last_transition_time
    late.judge()
    assert late.condition().reason is Reason.FREEZE_LATE
    assert late.condition().last_transition_time == since
    assert len(late.events()) == 1


def test_models_with_a_lasting_breach_come_in_turn(fleet, monkeypatch):
    monkeypatch.setattr(freshness, "JUDGED_AGAIN", 2)
    for model in "abc":
        fleet.ask(model)
        fleet.serve(1, hours=2, model=model)
    fleet.judge()
    asked = []
    find = freshness.find_late_stage
    monkeypatch.setattr(
        freshness, "find_late_stage", lambda unit, found: asked.append(found.model) or find(unit, found)
    )
    for _ in range(3):
        fleet.judge()
    assert ["".join(asked[start : start + 2]) for start in (0, 2, 4)] == ["ab", "ac", "bc"]


def test_a_model_that_stops_to_ask_loses_its_condition_and_the_breach_ends(late):
    late.judge()
    late.ask(target=None)
    late.judge()
    assert late.condition() is None
    assert late.events()[-1].message == "whole in us-east: it is not judged any more"


def test_a_model_that_serves_nothing_any_more_loses_its_condition(late):
    late.judge()
    with late.store.begin("ranker") as unit:
        unit.delete_routes("ranker")
    late.judge()
    assert late.condition() is None


def test_a_pass_without_news_writes_nothing(late, monkeypatch):
    late.judge()
    before = late.store.revision()
    monkeypatch.setattr(Repository, "set_condition", None)  # SQLite would not see that the same is written again
    for _ in range(3):
        assert late.judge().failed == {}
    assert late.store.revision() == before


def test_a_model_that_fails_stops_no_other(fleet, monkeypatch):
    for model in "ab":
        fleet.ask(model)
        fleet.serve(1, hours=2, model=model)
    find = freshness.find_late_stage

    def broken(unit, found):
        if found.model == "a":
            msg = "no"
            raise Conflict(msg)
        return find(unit, found)

    monkeypatch.setattr(freshness, "find_late_stage", broken)
    assert fleet.judge().failed == {"a": "no"}
    assert (fleet.condition("a"), fleet.condition("b").status) == (None, "False")


def test_freshness_is_no_part_of_ready(late):
    with late.store.begin("ranker") as unit:
        for kind in (ConditionType.SERVING, ConditionType.UP_TO_DATE):
            unit.set_condition("ranker", kind, "True", Reason.SUCCEEDED)
    late.judge()
    with late.store.read() as unit:
        found = {each.type: each.status for each in unit.conditions("ranker")}
        assert (found[ConditionType.FRESH], found[ConditionType.READY]) == ("False", "True")
        assert unit.model_counts() == (1, 1)
