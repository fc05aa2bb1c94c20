"""Serving snapshots on both engines: when a snapshot serves a region, its age, and the window of its freshness."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.store.registry import servings as module

T0 = datetime(2026, 12, 1, 10, 0, tzinfo=UTC)


def after(seconds):
    return T0 + timedelta(seconds=seconds)


def table(revision, region="north", /, **shares):
    """A table that sends shares to generations: table(1, g1=0.5, g2=0.5)."""
    found = [RouteShare(to="south", generation=int(name[1:]), fraction=share) for name, share in shares.items()]
    return RouteTable(model="ctr", region=region, revision=revision, shares=tuple(found), served=())


class Platform:
    """The model `ctr` of the parts dense and sparse, in units of work at given times."""

    def __init__(self, store, make):
        self.store, self.make = store, make

    @contextmanager
    def at(self, seconds):
        with self.store.begin("ctr") as unit:
            unit._now = lambda: after(seconds)
            yield unit

    def publish(self, seconds, *, trained=None, **parts):
        with self.at(seconds) as unit:
            moment = None if trained is None else after(trained)
            sources = {
                part: self.make.source(content).model_copy(update={"trained_at": moment})
                for part, content in parts.items()
            }
            unit.publish("ctr", sources, change_id=f"c{seconds}")

    def route(self, seconds, *tables, together=False):
        with self.at(seconds) as unit:
            if together:
                unit.put_routes(tables)
            for each in () if together else tables:
                unit.put_route(each)

    def ask(self, seconds, **freshness):
        with self.at(seconds) as unit:
            manifest = self.make.manifest()
            document = manifest.model_dump(mode="json", by_alias=True)
            for part in document["spec"]["parts"]:
                part["freshness"] = freshness.get(part["name"])
            unit.put_model(type(manifest).model_validate(document), expected_version=None)

    def serving(self):
        with self.store.read() as unit:
            return {(found.part, found.region): found for found in unit.serving_snapshots("ctr")}

    def numbers(self):
        return {place: found.number for place, found in self.serving().items()}


@pytest.fixture
def ctr(applied, make):
    return Platform(applied, make)


@pytest.fixture
def published(ctr):
    """Generation 1 (dense 1, sparse 1) and 2 (dense 2, sparse 1)."""
    ctr.publish(0, dense="a", sparse="b", trained=-30)
    with ctr.at(1) as unit:
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
    ctr.publish(100, dense="c", trained=90)
    return ctr


def freshness(target, objective=0.99):
    return {"target": target, "objective": objective}


@pytest.mark.parametrize("together", [False, True])
def test_a_snapshot_serves_once_no_older_one_answers(published, together):
    published.route(10, table(1, g1=1.0), together=together)
    assert published.numbers() == {("dense", "north"): 1, ("sparse", "north"): 1}
    published.route(110, table(2, g1=0.9, g2=0.1), together=together)
    assert published.numbers()["dense", "north"] == 1, "a canary"
    published.route(130, table(3, g1=0.0, g2=1.0), together=together)
    found = published.serving()["dense", "north"]
    assert (found.number, found.since, found.trained_at, found.published_at) == (2, after(130), after(90), after(100))
    assert found.to_serving_seconds == 30
    assert published.serving()["sparse", "north"].since == after(10), "the same snapshot goes on"


def test_regions_differ(published):
    published.route(10, table(1, g1=1.0), table(1, "west", g1=1.0))
    published.route(120, table(2, "west", g2=1.0))
    assert published.numbers() == {
        ("dense", "north"): 1,
        ("dense", "west"): 2,
        ("sparse", "north"): 1,
        ("sparse", "west"): 1,
    }


def test_a_rollback_serves_the_older_snapshot_from_its_first_answer_on(published):
    published.route(110, table(1, g2=1.0))
    published.route(200, table(2, g2=0.9, g1=0.1))
    found = published.serving()["dense", "north"]
    assert (found.number, found.since) == (1, after(200))
    published.route(210, table(3, g1=1.0))
    assert published.serving()["dense", "north"].since == after(200)


def test_what_serves_again_keeps_its_first_time(published):
    published.route(110, table(1, g2=1.0))
    published.route(200, table(2, g1=1.0))
    published.route(300, table(3, g2=1.0))
    found = published.serving()["dense", "north"]
    assert (found.since, found.to_serving_seconds) == (after(300), 200), (
        "that of snapshot 1, which was the last new one"
    )
    with published.store.read() as unit:
        first = unit.first_servings("ctr", [("dense", 2), ("dense", 1), ("dense", 9)])
    assert [(each.region, each.serving_at) for each in first["dense", 2]] == [("north", after(110))]
    assert [each.serving_at for each in first["dense", 1]] == [after(200)]
    assert first["dense", 9] == ()


def test_first_servings_of_the_newest_snapshots_are_kept(ctr, monkeypatch):
    monkeypatch.setattr(module, "KEPT_SERVINGS", 2)
    for number in range(1, 5):
        ctr.publish(number, dense=f"d{number}", sparse=f"s{number}")
        ctr.route(number, table(number, **{f"g{number}": 1.0}))
    with ctr.store.read() as unit:
        found = unit.first_servings("ctr", [("dense", number) for number in range(1, 5)])
    assert [number for (_, number), first in found.items() if first] == [3, 4]


def test_nothing_serves_without_routes(published):
    published.route(10, table(1, g1=1.0), table(1, "west", g1=1.0))
    published.route(20, table(2))
    assert {region for _, region in published.numbers()} == {"west"}
    with published.at(30) as unit:
        unit.delete_routes("ctr")
    assert published.numbers() == {}


def test_time_without_a_serving_snapshot_is_not_observed(published):
    published.ask(5, dense=freshness("20s"))
    published.route(10, table(1, g1=1.0))
    published.route(20, table(2))
    published.route(1000, table(3, g1=1.0))
    window = published.serving()["dense", "north"].window_at(after(1010))
    assert sum(each.observed for each in window) == 20


def test_the_window_counts_each_snapshot_while_it_served(published):
    published.ask(5, dense=freshness("1m"))
    published.route(10, table(1, g1=1.0))  # trained at -30, so late from 30 on
    published.route(130, table(2, g2=1.0))  # trained at 90, so late from 150 on
    found = published.serving()["dense", "north"]
    assert found.share_at(after(130)) == pytest.approx(20 / 120)
    assert found.share_at(after(190)) == pytest.approx(40 / 180)
    assert published.serving()["sparse", "north"].share_at(after(190)) is None


def test_another_target_counts_from_now_on(published):
    published.ask(5, dense=freshness("1m"))
    published.route(10, table(1, g1=1.0))
    published.ask(130, dense=freshness("1h", 0.5))
    found = published.serving()["dense", "north"]
    assert (found.target_seconds, found.objective) == (3600, 0.5)
    assert found.share_at(after(250)) == pytest.approx(140 / 240)
    published.ask(260)
    assert published.serving()["dense", "north"].target_seconds is None
    published.ask(270, dense=freshness("1m"))
    assert published.serving()["dense", "north"].share_at(after(280)) == 0.0, "it is observed since the last apply"


def late(published, seconds):
    """Numbers of the snapshots that are late then."""
    with published.at(seconds) as unit:
        return {(each.part, each.number) for found in unit.late_snapshots().values() for each in found}


def test_what_is_late_is_found_by_its_time(published):
    published.route(10, table(1, g1=1.0))
    assert late(published, 10**6) == set()
    published.ask(20, dense=freshness("1m"))
    assert (late(published, 30), late(published, 31)) == (set(), {("dense", 1)}), "trained at -30"
    published.route(110, table(2, g2=1.0))
    assert (late(published, 150), late(published, 151)) == (set(), {("dense", 2)}), "trained at 90"
    published.ask(160, dense=freshness("2m"))
    assert (late(published, 210), late(published, 211)) == (set(), {("dense", 2)})
    with published.at(220) as unit:
        unit.note_trained("ctr", "dense", published.make.source("c").manifest.digest, after(200))
    assert (late(published, 320), late(published, 321)) == (set(), {("dense", 2)})
    published.route(330, table(3))
    assert late(published, 400) == set()
    published.route(340, table(4, g2=1.0))
    assert late(published, 400) == {("dense", 2)}


def test_models_to_judge_are_those_whose_condition_is_missing_or_too_much(published):
    def unjudged():
        with published.store.read() as unit:
            return unit.unjudged_models(), unit.count_judged()

    published.route(10, table(1, g1=1.0))
    assert unjudged() == ((), 0)
    published.ask(20, dense=freshness("1m"))
    assert unjudged() == (("ctr",), 1)
    with published.at(30) as unit:
        unit.set_condition("ctr", ConditionType.FRESH, "True", Reason.FRESH)
    assert unjudged() == ((), 1)
    published.ask(40)
    assert unjudged() == (("ctr",), 0)
    with published.at(50) as unit:
        unit.delete_condition("ctr", ConditionType.FRESH)
    assert unjudged() == ((), 0)


def test_an_owner_lists_what_serves_of_its_models(published):
    published.route(10, table(1, g1=1.0))
    with published.store.read() as unit:
        assert len(unit.serving_snapshots_of_all()) == 2
    with published.store.read(frozenset({"others"})) as unit:
        assert unit.serving_snapshots_of_all() == ()


def test_a_breach_of_a_place_that_is_not_judged_any_more_is_void(published):
    published.ask(5, dense=freshness("1s"))
    published.route(10, table(1, g1=1.0))
    with published.at(20) as unit:
        unit.mark_breach(("ctr", "dense", "north"), begins=True)
        assert unit.void_breaches() == ()
    assert published.serving()["dense", "north"].breached_at == after(20)
    published.ask(30)
    with published.at(40) as unit:
        assert unit.void_breaches() == (("ctr", "dense", "north"),)
        unit.mark_breach(("ctr", "dense", "north"), begins=False)
        assert unit.void_breaches() == ()


def test_the_same_bytes_trained_again_are_as_old_as_the_last_training(published):
    published.ask(5, dense=freshness("1m"))
    published.route(110, table(1, g2=1.0))
    digest = published.make.source("c").manifest.digest
    with published.at(200) as unit:
        unit.note_trained("ctr", "dense", digest, after(190))
        unit.note_trained("ctr", "dense", digest, after(95))
        unit.note_trained("ctr", "dense", "0" * 64, after(195))
        assert unit.snapshot("ctr", "dense", 2).trained_at == after(190)
    found = published.serving()["dense", "north"]
    assert found.trained_at == after(190)
    assert found.published_at == after(100)
    assert found.share_at(after(200)) == pytest.approx(40 / 90), "late from 150 to 200, by the former training"


def test_a_training_that_has_not_ended_counts_from_the_publication(ctr):
    ctr.publish(0, dense="a", sparse="b", trained=50)
    with ctr.store.read() as unit:
        assert unit.snapshot("ctr", "dense", 1).trained_at == T0, "a clock of the training system is ahead"
