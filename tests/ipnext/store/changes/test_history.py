"""Retention of the history on both engines: events, changes, plans, replans and versions of sources."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, update

from ipnext.access.acting import acting, on_this_machine
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.retention import Keep
from ipnext.model.registry.sources import FoundVersion, Listing, VersionState
from ipnext.store.sources.sources import WatchedSource
from ipnext.store.tables.row import METADATA

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=100)
KEEP = Keep(2, timedelta(days=30))


def aged(store, kind, models=("ctr",), keep=KEEP):
    with store.read() as unit:
        found = unit.aged_rows(kind, models, keep, now=NOW, limit=1000)
        counted = unit.count_aged(kind, models, keep, now=NOW)
    assert (counted.count, counted.size_bytes) == (len(found), sum(found.values()))
    return found


def collect(store, kind, models=("ctr",), keep=KEEP):
    found = aged(store, kind, models, keep)
    with store.begin_free(()) as unit:
        return unit.delete_aged(kind, sorted(found))


def left(store, table, column):
    with store.read() as unit:
        of = METADATA.tables[table].c
        return list(unit.connection().execute(select(of[column]).order_by(of.ordinal)).scalars())


def write(store, table, *rows):
    with store.begin() as unit:
        for row in rows:
            unit.connection().execute(insert(METADATA.tables[table]), row)


def grow_old(store, table, **times):
    with store.begin() as unit:
        unit.connection().execute(update(METADATA.tables[table]).values(**times))


def test_events_beyond_age_and_count_go_for_each_model_and_for_the_fleet(applied):
    for model in ("ctr", None):
        for number in range(5):
            at = OLD if number < 4 else NOW
            write(applied, "events", {"model": model, "kind": "K", "message": f"{model} {number}", "at": at})
    assert len(collect(applied, "event")) == 3
    assert len(collect(applied, "event", None)) == 3
    assert left(applied, "events", "message") == ["ctr 3", "ctr 4", "None 3", "None 4"]


def test_young_events_stay_however_many(applied):
    write(applied, "events", *({"model": "ctr", "kind": "K", "message": "", "at": NOW} for _ in range(9)))
    assert not aged(applied, "event")


@pytest.fixture
def changed(applied):
    """A model with six ended changes, one that stopped a move, and one that waits; all of them old."""
    with applied.begin("ctr") as unit:
        for number in range(1, 7):
            unit.add_change("ctr", ChangeKind.REPAIR, change_id=f"c{number}")
            unit.update_change(f"c{number}", state=ChangeState.DONE)
        unit.add_change("ctr", ChangeKind.APPLY, change_id="apply")
        unit.update_change("apply", state=ChangeState.DONE)
    with applied.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.REPAIR, change_id="waits")
        for number in range(3):
            unit.add_change("ctr", ChangeKind.REPAIR, change_id=f"late{number}")
            unit.update_change(f"late{number}", state=ChangeState.DONE)
    grow_old(applied, "changes", created_at=OLD)
    return applied


def test_ended_changes_go_but_the_newest_of_each_kind_and_open_ones_stay(changed):
    assert len(collect(changed, "change")) == 7
    assert left(changed, "changes", "id") == ["apply", "waits", "late1", "late2"]


def test_a_change_that_stopped_another_one_stays(changed):
    with changed.begin("ctr") as unit:
        table = METADATA.tables["changes"]
        unit.connection().execute(update(table).where(table.c.id == "late2").values(stopped_by="c2"))
    collect(changed, "change")
    assert left(changed, "changes", "id")[0] == "c2"


def test_transitions_and_overrides_go_with_their_change(changed):
    rows = [
        {"id": f"t{number}", "change_id": change, "model": "ctr", "generation": 1, "transition": "{}", "state": "done"}
        | {"waves_done": 0, "message": "", "created_at": OLD}
        for number, change in enumerate(("c1", "waits"))
    ]
    write(changed, "transitions", *rows)
    write(
        changed,
        "freeze_overrides",
        {"change_id": "c1", "model": "ctr", "at": OLD, "who": "", "reason": "", "freezes": "[]"},
    )
    collect(changed, "change")
    assert left(changed, "transitions", "change_id") == ["waits"]
    with changed.read() as unit:
        assert unit.freeze_override("c1") is None


PLAN = {
    "trigger": "drift",
    "outcome": "kept",
    "reason": "",
    "message": "",
    "input_digest": "",
    "status": "",
    "method": "",
}
PLAN |= dict.fromkeys(("objective", "bound", "gap", "cost_per_hour", "unmet_qps"), 0.0) | {
    "bound_covers": "",
    "moves": 0,
}


def plans(store, scope, count=5):
    write(store, "plans", *({**PLAN, "id": f"{scope}{n}", "scope": scope, "created_at": OLD} for n in range(count)))


def test_plans_go_but_not_those_that_something_goes_by(applied):
    plans(applied, None)
    plans(applied, "ctr", count=7)
    write(applied, "plan_in_force", {"id": 1, "plan_id": "None1", "adopted_at": OLD})
    write(
        applied,
        "replan_moves",
        {"plan_id": "None2", "position": 1, "model": "ctr", "state": "", "change_id": "", "message": ""},
    )
    placed = dict.fromkeys(("wishes", "replicas", "traffic", "unmet"), "[]")
    numbers = dict.fromkeys(("priority", "unmet_qps", "cost_per_hour"), 0.0)
    write(applied, "placements", {"model": "ctr", "plan_id": "ctr3", "owner": "x", **placed, **numbers})
    with applied.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.MOVE, change_id="m", plan_id="ctr4")
    collect(applied, "plan", None)
    collect(applied, "plan")
    assert left(applied, "plans", "id") == ["None1", "None2", "None3", "None4", "ctr3", "ctr4", "ctr5", "ctr6"]


def test_a_plan_that_came_to_be_in_force_since_it_was_read_stays(applied):
    plans(applied, None)
    found = aged(applied, "plan", None)
    write(applied, "plan_in_force", {"id": 1, "plan_id": "None0", "adopted_at": NOW})
    with applied.begin_free(()) as unit:
        unit.delete_aged("plan", sorted(found))
    assert left(applied, "plans", "id") == ["None0", "None3", "None4"]


def test_replans_that_have_ended_go(applied):
    row = {
        "trigger": "drift",
        "reason": "",
        "message": "",
        "moves": 0,
        "models": "[]",
        "not_before": OLD,
        "created_at": OLD,
    }
    states = ("kept", "moving", "failed", "adopted", "kept", "kept")
    moved = {"plan_id": "p", "position": 1, "model": "ctr", "state": "", "change_id": "", "message": ""}
    write(applied, "replan_moves", moved)
    write(applied, "replans", *({**row, "id": f"r{n}", "state": state} for n, state in enumerate(states)))
    with applied.begin() as unit:
        table = METADATA.tables["replans"]
        unit.connection().execute(update(table).where(table.c.id == "r3").values(plan_id="p"))
    collect(applied, "replan", None)
    assert left(applied, "replans", "id") == ["r1", "r3", "r4", "r5"]


def watch(store, *, kind="directory", cursor=""):
    stream = {"push": {}} if kind == "push" else {"directory": {"path": "/feed"}}
    if kind == "mlflow":
        stream = {"mlflow": {"uri": "https://mlflow.example.com", "model": "ctr"}}
    spec = SourceSpec.model_validate({"name": "feed", "part": "dense", **stream})
    with store.begin("ctr") as unit:
        unit.put_sources("ctr", [WatchedSource(spec=spec, part="dense", upstream="/feed")])


def listing(keys, *, whole=True, cursor=None):
    versions = tuple(FoundVersion(key=key, place=key) for key in keys.split())
    return Listing(cursor=cursor or keys, versions=versions, whole=whole)


def poll(store, keys, **given):
    with store.begin_free(()) as unit:
        unit.note_listing(unit.source("ctr", "feed"), listing(keys, **given))


def finish(store, *, but=()):
    """All versions have ended long ago, but for those of these keys."""
    with store.begin("ctr") as unit:
        for version in unit.pending_versions("ctr"):
            if version.version.key not in but:
                unit.end_version(version.ordinal, VersionState.PUBLISHED)
        table = METADATA.tables["source_versions"]
        unit.connection().execute(update(table).where(table.c.ended_at.is_not(None)).values(ended_at=OLD))
        unit.connection().execute(update(table).values(found_at=OLD))


def keys(store):
    return left(store, "source_versions", "key")


def test_versions_go_once_their_source_lists_them_no_more(applied):
    watch(applied)
    poll(applied, "a b c d e f")
    finish(applied, but=("a",))
    assert not aged(applied, "source version"), "all are still there, and would be found again"
    poll(applied, "c d e f")
    assert len(collect(applied, "source version")) == 1
    assert keys(applied) == list("acdef"), "a is still to be published"
    poll(applied, "c d e f")
    assert keys(applied) == list("acdef")


def test_a_version_that_is_listed_again_stays(applied):
    watch(applied)
    poll(applied, "a b c d")
    finish(applied)
    poll(applied, "c d")
    found = aged(applied, "source version")
    assert len(found) == 2
    poll(applied, "a c d")
    with applied.begin_free(()) as unit:
        unit.delete_aged("source version", sorted(found))
    assert keys(applied) == list("acd")
    with applied.read() as unit:
        assert unit.pending_versions("ctr") == ()


def test_versions_of_a_source_with_a_cursor_go_by_age_and_count(applied):
    watch(applied, kind="mlflow")
    poll(applied, "1 2 3 4", whole=False)
    finish(applied)
    collect(applied, "source version")
    assert keys(applied) == ["3", "4"]


def test_versions_of_a_source_that_lists_from_the_beginning_again_are_not_published_again(applied):
    watch(applied, kind="mlflow")
    poll(applied, "1 2 3 4", whole=False)
    finish(applied)
    collect(applied, "source version")
    with applied.begin("ctr") as unit:
        unit.put_sources("ctr", [])
    watch(applied, kind="mlflow")
    poll(applied, "1 2 3 4 5", whole=False)
    with applied.read() as unit:
        assert [version.version.key for version in unit.pending_versions("ctr")] == ["5"]


def test_versions_of_a_source_that_is_gone_go_together(applied):
    watch(applied)
    poll(applied, "a b c d")
    finish(applied, but=("d",))
    poll(applied, "a b c d e")
    with applied.begin("ctr") as unit:
        unit.put_sources("ctr", [])
    assert not aged(applied, "source version"), "e is young"
    grow_old(applied, "source_versions", found_at=OLD)
    assert len(collect(applied, "source version")) == 5


def test_models_with_a_history_are_read_in_turns(applied, make):
    with applied.begin() as unit:
        for name in ("a", "b", "c"):
            unit.put_model(make.manifest(name), expected_version=None)
    write(applied, "events", *({"model": m, "kind": "K", "message": "", "at": OLD} for m in ("a", "a", "b", "c", None)))
    with applied.read() as unit:
        assert unit.history_models("event", "", limit=2) == ("a", "b")
        assert unit.history_models("event", "b", limit=2) == ("c",)
        assert unit.history_models("replan", "", limit=2) == ()


def test_what_is_collected_has_no_entry_in_the_audit(changed):
    with acting(on_this_machine("a test", "artifacts.collect")), changed.begin_free(()) as unit:
        unit.delete_aged("change", sorted(aged(changed, "change")))
    with changed.read() as unit:
        assert unit.audit_head().sequence == 0
