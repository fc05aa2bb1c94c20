"""Reads of a wave, of lists and of a lost region go through an index on both engines.

That holds for any size of the tables.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, insert, text

from activities.state.routes.routed_models import read_routed
from activities.transition.wave_context import WaveContext
from ipnext.api.services.model_facts import facts_of
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.failure_cause import Cause
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import Transition
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.value import canonical_json
from ipnext.store.operations.freshness import find_late_stage
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository
from ipnext.store.tables.row import METADATA
from tests.ipnext.store.conftest import model_manifest, snapshot_source

MODELS, NUMBERS = 60, 30
NAMES = tuple(f"m{number:02}" for number in range(MODELS))
SOME = NAMES[10:20]
NOW = datetime.now(UTC)

BIG = frozenset(
    {
        "models",
        "snapshots",
        "generations",
        "changes",
        "reports",
        "transitions",
        "deployments",
        "routes",
        "route_shares",
        "conditions",
        "events",
        "placements",
        "placed_replicas",
    }
)
"""Tables that grow with the fleet or with its age."""

HISTORY = frozenset({"snapshots", "generations", "changes", "reports", "transitions", "events", "replans", "plans"})
"""Tables that grow with the fleet's age."""


def rows(manifest: str, snapshot: SnapshotManifest) -> Iterator[tuple[str, dict]]:
    """(Table, row) of models with a history each."""
    for name in NAMES:
        dates = {"created_at": NOW, "updated_at": NOW}
        counts = {"generation": 1, "observed_generation": 1, "version": 1, "serving_generation": NUMBERS - 1}
        own = {"manifest": manifest.replace('"ctr"', f'"{name}"'), "retired": False, "target_generation": NUMBERS}
        yield "models", {"name": name, **own, **counts, **dates}
        for kind in ConditionType:
            told = {"status": "True", "reason": Reason.SERVING.value, "message": "", "last_transition_time": NOW}
            yield "conditions", {"model": name, "type": kind.value, **told}
        for number in range(1, NUMBERS + 1):
            yield from row_of(name, number, snapshot)


def row_of(name: str, number: int, snapshot: SnapshotManifest) -> Iterator[tuple[str, dict]]:
    """(Table, row) of one publish of one model."""
    at = NOW - timedelta(minutes=NUMBERS - number)
    digest = f"{number:08}{snapshot.digest[8:]}"
    kept = {"digest": digest, "uri": "file:///x", "manifest": canonical_json(snapshot), "created_at": at}
    yield "snapshots", {"model": name, "part": "dense", "number": number, **kept}
    ended = {"state": "warm", "created_at": at, "serving_at": at if number < NUMBERS else None}
    yield "generations", {"model": name, "number": number, "snapshots": canonical_json({"dense": number}), **ended}
    change = {"id": f"{name}-{number}", "model": name, "kind": "publish", "sequence": number, "generation": number}
    yield "changes", {**change, "state": ChangeState.ROLLED_BACK.value, "message": "", "created_at": at}
    cause = Cause(change=f"{name}-{number}", reason=Reason.LOAD_FAILED, message="")
    yield "events", {"at": at, "model": name, "kind": "Failed", "message": "", "detail": canonical_json(cause.detail)}
    transition = canonical_json(Transition.model_validate({"from": {}, "to": {}, "waves": ({"gate": "final"},)}))
    planned = {"transition": transition, "state": "done", "waves_done": 1, "message": "", "created_at": at}
    named = {"id": f"{name}-{number}", "model": name, "change_id": f"{name}-{number}", "generation": number}
    yield "transitions", {**named, **planned}
    counts = {"dry_run": False, "moves": 0, "models": "[]", "not_before": at, "created_at": at, "finished_at": at}
    yield (
        "replans",
        {"id": f"{name}-{number}", "trigger": "drift", "state": "done", "reason": "", "message": "", **counts},
    )


@pytest.fixture
def filled(store):
    """A store of some thousand rows; model m10 rolls out."""
    source = snapshot_source("a")
    tables: dict[str, list[dict]] = {}
    for table, row in rows(canonical_json(model_manifest(parts=("dense",))), source.manifest):
        tables.setdefault(table, []).append(row)
    with store.begin() as repository:
        connection = repository.connection()
        for table, found in tables.items():
            connection.execute(insert(METADATA.tables[table]), found)
        for name in NAMES:
            serve(repository, name, NUMBERS - 1)
        for name, later in ((SOME[1], ()), (SOME[2], (ChangeKind.APPLY,))):
            for kind in (ChangeKind.REPAIR, *later):
                change = repository.add_change(name, kind, change_id=f"{name}-{kind}")
                repository.update_change(change.id, state=ChangeState.ROLLED_BACK)
        transition = Transition.model_validate({"from": {}, "to": {}, "waves": ({"gate": "final"},)})
        own = {"id": "t", "model": SOME[0], "change_id": f"{SOME[0]}-{NUMBERS}", "generation": NUMBERS}
        repository.save_transition(TransitionRecord(**own, transition=transition, created_at=NOW))
    with store.begin() as repository:
        if repository.connection().dialect.name != "sqlite":  # nothing analyzes SQLite, PostgreSQL does so by itself
            for table in METADATA.tables:
                repository.connection().execute(text(f"ANALYZE {table}"))
    return store


def serve(repository: Repository, name: str, generation: int) -> None:
    """One replica set and one table."""
    held = AssignedSnapshot(snapshot=generation, digest="0" * 64, uri="file:///x", generations=(generation,))
    key = DeploymentKey(model=name, part="dense", region="north", hardware="cpu")
    repository.put_deployment(Deployment(key=key, replicas=1, engine="torch", units=1, qps=100, holds=(held,)))
    shares = (RouteShare(to="north", generation=generation, fraction=1.0),)
    repository.put_route(RouteTable(model=name, region="north", revision=1, shares=shares, served=()))


def wave_step(unit: Repository) -> None:
    """What an activity of a wave reads."""
    wave = WaveInput(model=SOME[0], transition_id="t", generation=NUMBERS, index=0, deadline_seconds=60)
    WaveContext.read(unit, wave, "routed")


def lost_region(unit: Repository) -> None:
    """What sends users elsewhere reads of a batch of models."""
    unit.retiring_models()
    read_routed(unit, SOME)


def model_list(unit: Repository) -> None:
    """What a page of models, and the page in the browser, read of their models."""
    unit.model_page(after=NAMES[9], limit=10)
    unit.model_page(ready=False, limit=10)
    unit.model_page(owner="search", limit=10)
    unit.unready_models(suspects=SOME, limit=10)
    facts_of(unit, unit.models_named(SOME))
    unit.recent_generations(SOME, limit=8)


def explanations(unit: Repository) -> None:
    """What explains models that failed."""
    assert set(unit.newest_transitions(SOME)) == set(SOME)
    assert unit.reports_of(dict.fromkeys(SOME, NUMBERS)) == {}
    assert {len(found) for found in unit.event_details(SOME, among=5).values()} == {5}


def histories(unit: Repository) -> None:
    """Pages of every history."""
    unit.change_page(limit=10)
    unit.change_page(SOME[0], after="20", limit=10)
    unit.event_page(limit=10)
    unit.event_page(SOME[0], limit=10)
    unit.generation_page(SOME[0], limit=10)
    unit.snapshot_page(SOME[0], part="dense", limit=10)
    unit.transition_page(SOME[0], limit=10)


def publish(unit: Repository) -> None:
    """What a publish of a delta, and the change behind it, look for."""
    unit.snapshot_of(SOME[0], "dense", "0" * 64)
    unit.newest_generation(SOME[0])
    unit.served_generations(SOME[0], limit=3)
    unit.open_changes(SOME[0])
    unit.count_unsubmitted()
    assert unit.find_stopped_move(SOME[0]) is None


def repairs(unit: Repository) -> None:
    """What each pass of the reconciler asks about the repairs of all models."""
    assert unit.models_unrepaired() == (SOME[1],)


@contextmanager
def executed(store):
    """(Statement, parameters) of all that the store runs meanwhile."""
    seen = []

    def before(_connection, _cursor, statement, parameters, *_):
        seen.append((statement, parameters))

    event.listen(store._engine, "before_cursor_execute", before)
    yield seen
    event.remove(store._engine, "before_cursor_execute", before)


def scans(store, statements, big=BIG) -> list[str]:
    """Accesses to big tables that read every row, of these statements."""
    with store._engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            return [step for sql, given in statements for step in _sqlite_scans(connection, sql, given, big)]
        connection.exec_driver_sql("SET enable_seqscan = off")  # tables of a test are so small that a scan is cheapest
        return [step for sql, given in statements for step in _postgresql_scans(connection, sql, given, big)]


def _sqlite_scans(connection, sql, given, big) -> Iterator[str]:
    if not sql.startswith("SELECT"):
        return
    aliased = {name for name in sql.replace(",", " ").split() if name.rpartition("_")[0] in big}
    for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", given):
        step = row[3].split()
        ordered = "LIMIT" in sql and "INDEX" in step  # as many rows as the page holds
        if step[0] == "SCAN" and step[1] in big | aliased and not ordered and not _by_ordinal(sql):
            yield f"{row[3]}: {sql}"


def _by_ordinal(sql: str) -> bool:
    """SQLite walks a table in the order of its key without naming an index."""
    return "LIMIT" in sql and "ordinal DESC" in sql and "WHERE" not in sql


def _postgresql_scans(connection, sql, given, big) -> Iterator[str]:
    plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", given).scalar()
    (found,) = plan if isinstance(plan, list) else json.loads(plan)
    yield from (f"{step}: {sql}" for step in _steps(found["Plan"], big, limited=False))


def _steps(node, big, *, limited: bool) -> Iterator[str]:
    """Nodes that read all of a big table: neither by a condition on an index nor in its order up to a limit."""
    limited = (limited or node["Node Type"] == "Limit") and node["Node Type"] != "Sort"
    sought = "Index Cond" in node or (limited and "Index" in node["Node Type"])
    if node.get("Relation Name") in big and node["Node Type"] != "Bitmap Heap Scan" and not sought:
        yield f"{node['Node Type']} of {node['Relation Name']}"
    for below in node.get("Plans", ()):
        yield from _steps(below, big, limited=limited)


def outbox(unit: Repository) -> None:
    """What the outbox asks each second."""
    unit.unsubmitted_changes(limit=10, but=SOME)
    unit.count_unsubmitted()
    unit.models_unsubmitted(SOME)
    unit.unsubmitted_drains()
    unit.due_replans()


def resubmission(unit: Repository) -> None:
    """What finds entities that are gone."""
    unit.long_open_changes(seconds=30)
    unit.claimed_drains()
    unit.claimed_replans()
    unit.frozen_changes()


def reconciler(unit: Repository) -> None:
    """What each pass of the reconciler asks."""
    unit.late_snapshots()
    unit.unjudged_models()
    unit.void_breaches()
    unit.count_judged()
    unit.models_astray(but=("north",))
    unit.models_unserved()
    unit.models_unrepaired()
    unit.settled_models()
    unit.is_settled(SOME[0])
    unit.is_moved(SOME[0])
    unit.deployment_documents("north")
    unit.route_revisions("north")
    unit.refusing_revisions("north")


def replan(unit: Repository) -> None:
    """What a replan, its moves and a drain's check ask of the fleet."""
    unit.cut_generations()
    unit.waiting_replans("drain")
    unit.replan_under_way()
    unit.find_triggers("plan")
    unit.open_moves()
    unit.frozen_models()
    unit.held_models(SOME)
    unit.moving_models(but=SOME[0])
    unit.find_remaining("north")
    unit.find_held("north")
    unit.shares_to("north")


def unrouted(unit: Repository) -> None:
    """What the fleet's readiness asks about the route tables of all models."""
    unit.models_unrouted()


def late_stage(unit: Repository) -> None:
    """What the cause of a breach of freshness is judged by."""
    (found,) = unit.serving_snapshots(SOME[0])
    find_late_stage(unit, found)
    find_late_stage(unit, found.model_copy(update={"number": NUMBERS}))


READS = (wave_step, lost_region, model_list, explanations, histories, publish, repairs, unrouted, late_stage)
PERIODIC = (outbox, resubmission, reconciler, replan)
"""Questions about the whole fleet, asked again and again: they may read a fleet, but no history."""


@pytest.mark.parametrize("read", READS)
def test_no_read_scans_a_table_that_grows(filled, read):
    with filled.read() as unit, executed(filled) as seen:
        read(unit)
    assert any("SELECT" in statement for statement, _ in seen)
    assert scans(filled, seen) == []


@pytest.mark.parametrize("read", PERIODIC)
def test_no_periodic_read_scans_a_history(filled, read):
    with filled.read() as unit, executed(filled) as seen:
        read(unit)
    assert any("SELECT" in statement for statement, _ in seen)
    assert scans(filled, seen, HISTORY) == []


def test_a_scan_is_found(filled):
    """The check itself: a question that no index answers."""
    with filled.read() as unit, executed(filled) as seen:
        unit.connection().execute(text("SELECT models.name FROM models WHERE models.version = 7"))
        unit.connection().execute(text("SELECT events.kind FROM events WHERE events.run_id = 'x'"))
    assert len(scans(filled, seen)) == 2
