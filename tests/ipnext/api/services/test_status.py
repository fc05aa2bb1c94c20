"""Status tells the truth: what is recorded is corrected by what the regions report."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from ipnext.api.services.explanation import (
    ADVICE_FOR_OLD_MANIFEST,
    ADVICE_WHILE_ASTRAY,
    ADVICE_WHILE_RETRIED,
    ADVICE_WHILE_STUCK,
)
from ipnext.api.services.explanation_chain import cause_steps, trouble_steps
from ipnext.api.services.region_states import States
from ipnext.api.services.status import Trouble, cause_of, serving_troubles
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.engine_start import EngineStart
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.failure_cause import Cause, Place
from ipnext.model.lifecycle.reasons import ADVICE
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.model.registry.registry import GenerationState, GraphNode, PartGraph
from ipnext.store.operations.change_end import end_change, write_ready
from ipnext.store.records import TransitionRecord
from tests.ipnext.conftest import model_document

KEY = DeploymentKey(model="ranker", part="dense", region="eu", hardware="cpu")


async def status_of(world):
    return (await world.http.get("/v1/models/ranker")).json()["status"]


def conditions_of(status):
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


async def explained(world):
    answer = (await world.http.get("/v1/models/ranker/explanation")).json()
    return answer, {step["level"]: step for step in answer["chain"]}


async def serving(world):
    await world.publish("a")
    world.rooms.serve(1)
    assert conditions_of(await status_of(world))["Ready"] == ("True", "Serving")


async def test_a_serving_model_shows_traffic_replicas_and_deployments(applied):
    await serving(applied)
    applied.rooms.adopt_plan()
    view = (await applied.http.get("/v1/models/ranker")).json()
    status = view["status"]
    assert conditions_of(status)["Ready"] == ("True", "Serving")
    assert status["traffic"] == {"eu": [{"to": "eu", "generation": 1, "fraction": 1.0}]}
    assert len(status["replicas"]) == 4
    assert (status["planId"], status["runId"]) == ("plan-1", "run-of-1")
    assert {(d["key"]["part"], d["wanted"], d["ready"]) for d in view["deployments"]} == {
        ("dense", 2, 2),
        ("sparse", 2, 2),
    }


def walked(change_id):
    """Two waves that bring the users of eu to generation 2."""

    def answered(*shares):
        rows = ({"model": "ranker", "from": "eu", "to": "eu", "generation": g, "fraction": f} for g, f in shares)
        return {"traffic": tuple(rows)}

    def routed(*shares):
        rows = tuple({"to": "eu", "generation": g, "fraction": f} for g, f in shares)
        return ({"model": "ranker", "from": "eu", "shares": rows},)

    waves = (
        {"gate": "canary", "route": routed((1, 0.75), (2, 0.25)), "hold_seconds": 30},
        {"gate": "final", "route": routed((2, 1))},
    )
    stated = {"from": answered((1, 1)), "to": answered((2, 1)), "waves": waves}
    transition = Transition.model_validate(stated)
    return TransitionRecord(
        id="t2", model="ranker", change_id=change_id, generation=2, transition=transition, created_at=datetime.now(UTC)
    )


async def test_while_traffic_moves_the_wave_is_told(applied):
    await serving(applied)
    await applied.publish("b")
    with applied.rooms.store.begin() as unit:
        change = unit.changes("ranker", limit=1)[0]
        unit.update_change(change.id, state=ChangeState.RUNNING, reason=Reason.PROGRESSING)
        unit.save_transition(walked(change.id))
        unit.advance_transition("t2", state=TransitionState.RUNNING)
    answer, steps = await explained(applied)
    assert (answer["reason"], answer["message"]) == (
        "Progressing",
        "wave 1 of 2: brings 25% of the traffic where it goes, then it holds 30 s",
    )
    with applied.rooms.store.begin() as unit:
        unit.advance_transition("t2", waves_done=1, state=TransitionState.RUNNING)
    answer, steps = await explained(applied)
    assert (steps["step"]["subject"], steps["step"]["state"]) == ("move traffic", "wave 2 of 2")
    assert steps["step"]["message"] == "brings 100% of the traffic where it goes"
    with applied.rooms.store.begin() as unit:
        unit.advance_transition("t2", waves_done=2, state=TransitionState.DONE)
    answer, steps = await explained(applied)
    assert ("step" in steps, answer["message"]) == (False, "the change is running")


async def test_a_step_that_is_tried_again_is_told_with_its_failure(applied):
    await serving(applied)
    await applied.publish("b")
    failure = "shift traffic is tried again: the gateway of region 'eu' does not follow: the disk is full"
    with applied.rooms.store.begin() as unit:
        change = unit.changes("ranker", limit=1)[0]
        unit.update_change(change.id, state=ChangeState.RUNNING, reason=Reason.ROUTE_FAILED, message=failure)
    status = await status_of(applied)
    told = next(c for c in status["conditions"] if c["type"] == "Progressing")
    assert (told["status"], told["reason"]) == ("True", "RouteFailed")
    assert told["message"].endswith(f"step: {failure}")
    answer, _ = await explained(applied)
    assert (answer["reason"], answer["message"]) == ("RouteFailed", failure)
    assert answer["advice"] == ADVICE_WHILE_RETRIED.replace("MODEL", "ranker")


async def test_a_change_that_temporal_does_not_accept_is_explained_by_its_error(applied):
    await serving(applied)
    applied.rooms.lifecycle.down = True  # the outbox submits nothing meanwhile
    for salt in ("b", "c"):
        applied.rooms.publish_directly("ranker", salt, state=ChangeState.RECORDED)
    message = (
        "not submitted yet: Temporal refused: the namespace is unknown, tried 4 times since 2026-01-01 10:00:00 UTC"
    )
    with applied.rooms.store.begin() as unit:
        _newest, stuck = unit.changes("ranker", limit=2)
        unit.update_change(stuck.id, state=ChangeState.RECORDED, message=message)
    answer, _ = await explained(applied)
    assert (answer["reason"], answer["message"]) == ("Pending", message)
    assert answer["advice"] == ADVICE_WHILE_STUCK
    with applied.rooms.store.begin() as unit:
        unit.update_change(stuck.id, state=ChangeState.QUEUED, message="")
    answer, _ = await explained(applied)
    assert (answer["reason"], answer["advice"]) == ("Pending", ADVICE[Reason.PENDING])


async def test_the_transitions_of_a_model_are_listed_with_their_waves(applied):
    await serving(applied)
    await applied.publish("b")
    with applied.rooms.store.begin() as unit:
        unit.save_transition(walked(unit.changes("ranker", limit=1)[0].id))
        unit.advance_transition("t2", waves_done=1, state=TransitionState.RUNNING)
    listed = (await applied.http.get("/v1/models/ranker/transitions")).json()["items"]
    assert [(each["id"], each["state"], each["waves_done"]) for each in listed] == [("t2", "running", 1)]
    assert len(listed[0]["transition"]["waves"]) == 2


@pytest.mark.parametrize(
    ("state", "reason", "message", "advice"),
    [
        (ChangeState.REFUSED, Reason.ENGINE_MISMATCH, "part c has no snapshot", ADVICE[Reason.ENGINE_MISMATCH]),
        (ChangeState.SUPERSEDED, Reason.SUPERSEDED, "change back is newer", ADVICE_FOR_OLD_MANIFEST),
    ],
)
async def test_after_a_rollback_the_newest_manifest_keeps_its_reason(applied, state, reason, message, advice):
    await serving(applied)
    document = model_document()
    document["spec"]["demand"][0]["qps"] += 1
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    with applied.rooms.store.begin() as unit:
        applying = unit.changes("ranker", limit=1)[0]
        end(unit, applying, LifecycleResult(state=state, generation=1, reason=reason, message=message))
        back = unit.add_change("ranker", ChangeKind.ROLLBACK, change_id="back", generation=1)
        unit.update_change(back.id, state=ChangeState.RUNNING)
        write_ready(unit, unit.model("ranker"))
    assert conditions_of(await status_of(applied))["UpToDate"] == ("False", "Progressing")
    with applied.rooms.store.begin() as unit:
        end(unit, back, LifecycleResult(state=ChangeState.DONE, generation=1))

    assert conditions_of(await status_of(applied))["UpToDate"] == ("False", reason.value)
    answer, _ = await explained(applied)
    assert (answer["reason"], answer["advice"]) == (reason.value, advice)
    assert answer["message"] == f"revision 1 of the manifest serves, 2 is wanted: {message}"


async def test_users_of_a_generation_that_does_not_serve_keep_a_model_from_being_ready(applied):
    await serving(applied)
    applied.rooms.publish_directly("ranker", "b")
    with applied.rooms.store.begin() as unit:
        unit.update_change(unit.changes("ranker", limit=1)[0].id, state=ChangeState.DONE)
        unit.update_model("ranker", serving_generation=2, target_generation=2)
        unit.set_generation_state("ranker", 2, GenerationState.SERVING)
        write_ready(unit, unit.model("ranker"))
    assert conditions_of(await status_of(applied))["Ready"] == ("False", "Progressing")
    answer, _ = await explained(applied)
    assert answer["message"] == "users of eu are sent to generation 1; generation 2 serves"
    assert answer["advice"] == ADVICE_WHILE_ASTRAY


def end(unit, change, result):
    record = RecordInput(
        model=change.model, change_id=change.id, kind=change.kind, generation=1, result=result, run_id="r", revision=1
    )
    end_change(unit, record)


async def failed_for_a_region(world, reason, message):
    """A publish that a region was in the way of, with its cause as the step that saw it writes it down."""
    await world.publish("a")
    with world.rooms.store.begin() as unit:
        change = unit.changes("ranker", limit=1)[0]
        cause = Cause(change=change.id, reason=reason, message=message, place=Place(region="eu"))
        unit.add_event("ranker", "CapacityReady", message, detail=cause.detail)
        unit.update_change(change.id, state=ChangeState.ROLLED_BACK, reason=reason, message=message)


def lost_and_back(world):
    """Eu is lost, then asked back and back in service."""
    with world.rooms.store.begin() as unit:
        drain = unit.add_drain("eu", disaster=True)
    yield
    with world.rooms.store.begin() as unit:
        unit.ask_return("eu")
        unit.update_drain(drain.id, state=DrainState.RETURNED)
    yield


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (Reason.REGION_UNREACHABLE, "generation 1 would run in eu only, which is lost"),
        (Reason.NO_CAPACITY, "nothing can be placed: supply us/cpu; eu is out of service (declared lost)"),
    ],
)
async def test_a_region_that_is_back_is_named_as_a_cause_no_more(applied, reason, message):
    drain = lost_and_back(applied)
    next(drain)
    await failed_for_a_region(applied, reason, message)
    answer, steps = await explained(applied)
    assert (answer["message"], steps["region"]["subject"]) == (message, "eu")
    assert ("`ipnext undrain eu`" in answer["advice"]) is (reason is Reason.NO_CAPACITY)

    next(drain)
    answer, steps = await explained(applied)
    assert answer["reason"] == reason
    assert "region" not in steps
    assert not {"eu", "lost"} & set(str(answer["chain"]).replace("'", " ").split())
    assert "back in service" in answer["message"]
    assert answer["advice"].startswith("Ask again: publish")


async def test_a_move_that_a_person_stopped_asks_for_no_publish(applied):
    await serving(applied)
    applied.rooms.adopt_plan()
    with applied.rooms.store.begin() as unit:
        move = unit.add_change("ranker", ChangeKind.MOVE, change_id="away", plan_id="plan-1")
        unit.update_change(move.id, state=ChangeState.ROLLED_BACK, reason=Reason.ABORTED, message="aborted by ann")
    answer, _ = await explained(applied)
    assert (answer["reason"], answer["ready"]) == ("Aborted", True)
    assert "ipnext replan" in answer["advice"]
    assert "ublish" not in answer["advice"]


async def test_a_publish_that_is_refused_leaves_the_model_serving_and_not_up_to_date(applied):
    await serving(applied)
    await applied.publish("b")
    applied.rooms.refuse(2, Reason.SCHEMA_MISMATCH, "edge x")
    with applied.rooms.store.begin() as unit:
        unit.set_condition("ranker", ConditionType.UP_TO_DATE, "False", Reason.SCHEMA_MISMATCH, "edge x")
    conditions = conditions_of(await status_of(applied))
    assert conditions["Serving"] == ("True", "Serving")
    assert conditions["UpToDate"] == conditions["Ready"] == ("False", "SchemaMismatch")
    assert conditions["Progressing"] == ("True", "Succeeded")


async def test_a_lost_replica_of_each_part_leaves_the_model_up_to_date_and_not_serving(applied):
    await serving(applied)
    applied.rooms.infrastructure.cut("eu")
    conditions = conditions_of(await status_of(applied))
    assert conditions["UpToDate"][0] == "True"
    assert conditions["Serving"] == conditions["Ready"] == ("Unknown", "RegionUnreachable")


async def test_a_region_that_only_a_newer_manifest_names_is_no_outage_until_it_was_brought_to_serving(applied):
    await serving(applied)
    document = applied.rooms.model_document()
    document["spec"]["demand"].append({"region": "us", "qps": 1})
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    assert conditions_of(await status_of(applied))["Serving"] == ("True", "Serving")
    with applied.rooms.store.begin() as unit:
        unit.update_model("ranker", observed_generation=2)
    assert conditions_of(await status_of(applied))["Serving"] == ("False", "NoCapacity")


@pytest.mark.parametrize(("reason", "routed"), [(Reason.FROZEN, ["eu", "us"]), (Reason.REGION_UNREACHABLE, ["us"])])
async def test_traffic_of_a_model_that_is_being_withdrawn_leaves_out_gateways_that_forgot_it(applied, reason, routed):
    await serving(applied)
    with applied.rooms.store.begin() as unit:
        unit.put_route(unit.route("ranker", "eu").model_copy(update={"region": "us"}))
        change = unit.add_change("ranker", ChangeKind.RETIRE, change_id="away")
        unit.update_change(change.id, state=ChangeState.RUNNING, reason=reason, message="us does not answer")
    applied.rooms.infrastructure.unroute("ranker", "eu")
    applied.rooms.infrastructure.cut("us")
    assert sorted((await status_of(applied))["traffic"]) == routed


async def test_progressing_names_the_change_and_its_step_or_what_holds_it_back(applied):
    def progressing(status):
        return next(c for c in status["conditions"] if c["type"] == "Progressing")

    assert (await status_of(applied))["conditions"] == []
    await applied.publish("a")
    waits = progressing(await status_of(applied))
    assert (waits["status"], waits["reason"]) == ("True", "Pending")
    with applied.rooms.store.begin() as unit:
        change = unit.changes("ranker")[0].id
        unit.update_change(change, state=ChangeState.RUNNING)
        unit.set_condition("ranker", ConditionType.RESOLVED, "True", Reason.SUCCEEDED)
        unit.set_condition("ranker", ConditionType.VALIDATED, "Unknown", Reason.PENDING, "generation 1")
    runs = progressing(await status_of(applied))
    assert (runs["status"], runs["reason"]) == ("True", "Progressing")
    assert runs["message"] == f"publish {change} of generation 1, step: validate: generation 1"
    with applied.rooms.store.begin() as unit:
        unit.update_change(change, state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen until tomorrow")
    frozen = progressing(await status_of(applied))
    assert (frozen["status"], frozen["reason"]) == ("False", "Frozen")
    with applied.rooms.store.begin() as unit:
        unit.set_condition("ranker", ConditionType.PROGRESSING, "False", Reason.PAUSED, "paused by ann")
    paused = progressing(await status_of(applied))
    assert (paused["status"], paused["reason"], paused["message"]) == ("False", "Paused", "paused by ann")


async def test_progressing_is_not_older_than_its_change_and_after_it_not_older_than_its_end(applied):
    async def since():
        found = next(c for c in (await status_of(applied))["conditions"] if c["type"] == "Progressing")
        return datetime.fromisoformat(found["lastTransitionTime"])

    await serving(applied)
    before = await since()
    await applied.publish("b")
    with applied.rooms.store.read() as unit:
        change = unit.changes("ranker", limit=1)[0]
    assert before < change.created_at == await since()
    with applied.rooms.store.begin("ranker") as unit:
        ended = unit.update_change(change.id, state=ChangeState.REFUSED)
    assert await since() == ended.finished_at


async def test_one_lost_replica_is_missing_capacity_but_the_model_is_ready(applied):
    await serving(applied)
    applied.rooms.infrastructure.stall(KEY)
    applied.rooms.infrastructure.crash(KEY)
    conditions = conditions_of(await status_of(applied))
    assert conditions["Ready"][0] == "True"
    assert conditions["CapacityReady"] == ("False", "Progressing")


async def test_demand_that_the_plan_leaves_unserved_is_missing_capacity(applied):
    await serving(applied)
    applied.rooms.adopt_plan()
    found = {c["type"]: c for c in (await status_of(applied))["conditions"]}
    assert (found["CapacityReady"]["status"], found["CapacityReady"]["reason"]) == ("False", "NoCapacity")
    assert found["CapacityReady"]["message"] == "the plan leaves 12.5 requests/s of users of eu unserved: supply"
    assert found["Ready"]["status"] == "True", "users of eu are answered as far as the capacity goes"


@pytest.mark.parametrize(("ready", "status"), [(True, "True"), (False, "False")])
async def test_capacity_that_was_missing_is_there_once_it_is_seen(applied, ready, status):
    await serving(applied)
    with applied.rooms.store.begin("ranker") as unit:
        unit.set_condition("ranker", ConditionType.CAPACITY_READY, "False", Reason.REGION_UNREACHABLE, "eu is away")
    if not ready:
        applied.rooms.infrastructure.stall(KEY)
        applied.rooms.infrastructure.crash(KEY)
    found = {c["type"]: c for c in (await status_of(applied))["conditions"]}
    assert found["CapacityReady"]["status"] == status
    assert "eu is away" in found["CapacityReady"]["message"]


async def test_a_model_without_a_ready_replica_of_a_part_is_not_ready_and_says_why(applied):
    await serving(applied)
    digest = applied.rooms.snapshot_manifest(b"densea").digest
    applied.rooms.infrastructure.fail_load(digest, code="OutOfMemory", message="needs 9 GiB")
    assert conditions_of(await status_of(applied))["Ready"] == ("False", "OutOfMemory")
    answer, steps = await explained(applied)
    assert (answer["ready"], answer["reason"]) == (False, "OutOfMemory")
    assert (steps["part"]["subject"], steps["region"]["subject"]) == ("dense", "eu")
    assert steps["host"]["subject"].startswith("ranker.dense")
    assert "needs 9 GiB" in steps["cause"]["message"]


async def test_an_adapter_that_its_base_cannot_load_is_the_part_that_is_named(applied):
    await serving(applied)
    with applied.rooms.store.begin() as unit:
        base = next(deployment for deployment in unit.deployments("ranker") if deployment.key.part == "dense")
        style = AssignedSnapshot(
            part="style", snapshot=7, digest="7" * 64, uri="file:///s", generations=(1,), adapter=True
        )
        both = base.model_copy(update={"holds": (*base.holds, style)})
        unit.put_deployment(both)
    applied.rooms.infrastructure.apply(both)
    applied.rooms.infrastructure.fail_load("7" * 64, message="rank 8 is more than it takes")
    answer, steps = await explained(applied)
    assert (answer["ready"], answer["reason"]) == (False, "LoadFailed")
    assert steps["part"]["subject"] == "style"
    assert steps["host"]["subject"].startswith("ranker.dense")
    assert "rank 8 is more than it takes" in steps["cause"]["message"]


async def test_a_host_without_all_segments_of_its_part_is_a_part_that_lacks(applied):
    await applied.publish("a")
    layout = applied.rooms.lay_out(1)
    applied.rooms.serve(1)
    key = DeploymentKey(model="ranker", part="tower", region="eu", hardware="cpu")
    held = tuple(
        AssignedSnapshot(
            part=s.name, snapshot=s.snapshot, digest=str(s.snapshot) * 64, uri="file:///s", generations=(1,)
        )
        for s in layout.segments
    )
    served = ServedGeneration(generation=1, graph=layout.graph, snapshots={s.name: s.snapshot for s in layout.segments})
    share = RouteShare(to="eu", generation=1, fraction=1.0)
    with applied.rooms.store.begin() as unit:
        for deployment in unit.deployments("ranker"):
            unit.delete_deployment(deployment.key)
        deployment = Deployment(key=key, replicas=1, engine="torch", units=1, qps=100, holds=held)
        unit.put_deployment(deployment)
        unit.put_route(RouteTable(model="ranker", region="eu", revision=3, shares=(share,), served=(served,)))
    applied.rooms.infrastructure.apply(deployment)
    await status_of(applied)
    assert conditions_of(await status_of(applied))["Ready"][0] == "True"

    applied.rooms.infrastructure.fail_load("4" * 64, message="the second stage is broken")
    answer, steps = await explained(applied)
    assert (answer["ready"], answer["reason"]) == (False, "LoadFailed")
    assert steps["part"]["subject"] == "tower"
    assert "the second stage is broken" in steps["cause"]["message"]


async def test_an_unreachable_region_is_shown_and_never_an_error(applied):
    await serving(applied)
    applied.rooms.infrastructure.cut("eu")
    status = await status_of(applied)
    assert status["unreachableRegions"] == ["eu"]
    assert conditions_of(status)["Ready"] == ("Unknown", "RegionUnreachable")
    regions = {r["region"]: r["reachable"] for r in (await applied.http.get("/v1/regions")).json()["items"]}
    assert regions == {"eu": False, "us": True}
    answer, _ = await explained(applied)
    assert answer["reason"] == "RegionUnreachable"
    for path in ("/v1/overview", "/metrics", "/v1/models"):
        assert (await applied.http.get(path)).status_code == 200


async def test_a_repair_that_waits_for_a_region_is_explained_with_the_region(applied):
    """Its users are served elsewhere; only its gateway is to be brought back."""
    await serving(applied)
    with applied.rooms.store.begin() as unit:
        table = unit.route("ranker", "eu")
        unit.put_route(table.model_copy(update={"region": "us"}))
        change = unit.add_change("ranker", ChangeKind.REPAIR, change_id="repair-ranker-2")
        unit.update_change(change.id, state=ChangeState.RUNNING)
    answer, _ = await explained(applied)
    assert answer["reason"] != "RegionUnreachable"
    applied.rooms.infrastructure.cut("us")
    answer, steps = await explained(applied)
    assert answer["reason"] == "RegionUnreachable"
    assert answer["message"] == "the repair waits for region us, which does not answer"
    assert (steps["region"]["subject"], steps["region"]["state"]) == ("us", "unreachable")
    assert steps["change"]["subject"].startswith("repair")


async def test_a_model_without_snapshots_is_explained_as_not_published(applied):
    answer, _ = await explained(applied)
    assert answer["reason"] == "NotPublished"
    assert "ipnext publish ranker" in answer["advice"]


async def test_a_refused_publish_is_explained_while_the_former_generation_serves(applied):
    await serving(applied)
    await applied.publish("b")
    applied.rooms.refuse(2, Reason.SCHEMA_MISMATCH, "edge sparse.output -> dense.x: FP32 is not FP16")
    answer, steps = await explained(applied)
    assert (answer["ready"], answer["reason"]) == (False, "SchemaMismatch")
    assert "generation 1 serves" in steps["deployment"]["message"]
    assert steps["change"]["state"] == "refused"
    assert "edge sparse.output" in answer["message"]


async def test_a_serving_model_is_explained_as_serving(applied):
    await serving(applied)
    answer, steps = await explained(applied)
    assert (answer["ready"], answer["reason"]) == (True, "Serving")
    assert set(steps) == {"deployment", "change", "cause"}


@pytest.mark.parametrize("other", ["asia", "us"])
def test_a_region_without_replicas_is_seen_whatever_other_regions_tables_say(other):
    """The table of a region that sends its users elsewhere names no parts: `asia` comes before `eu`, `us` behind it."""
    served = ServedGeneration(
        generation=1,
        snapshots={"dense": 1},
        graph=PartGraph(nodes=(GraphNode(name="d", part="dense", inputs={}),), outputs={"y": "d.y"}),
    )
    share = RouteShare(to="eu", generation=1, fraction=1.0)
    tables = tuple(
        RouteTable(
            model="ranker", region=region, revision=1, shares=(share,), served=(served,) if region == "eu" else ()
        )
        for region in sorted(["eu", other])
    )
    record = SimpleNamespace(name="ranker", serving_generation=None, generation=1, observed_generation=1)
    facts = SimpleNamespace(record=record, routes=tables, deployments=())
    states = States(
        {
            "eu": RegionState(region="eu", gateway_url="http://eu"),
            other: RegionState(region=other, gateway_url="http://other"),
        }
    )
    (trouble,) = serving_troubles(facts, states)
    assert trouble.message.startswith("no replica of 'dense' answers for generation 1 in eu")


def test_a_host_is_explained_with_the_file_of_its_log_while_it_is_seen_and_long_after():
    place = Place(step="bring up capacity", part="dense", region="eu", host="ranker.dense.cpu.0", log="/logs/a.log")
    told = cause_steps(Cause(change="c", reason=Reason.CRASH_LOOP, message="ended 3 times", place=place))
    seen = trouble_steps(Trouble("False", Reason.CRASH_LOOP, "", "eu", "dense", "ranker.dense.cpu.0", "/logs/a.log"))
    for steps in (told, seen):
        assert [(step.level, step.message) for step in steps][-1] == ("host", "log /logs/a.log")


def test_a_replica_that_goes_over_is_said_to_where_none_answers():
    going = Replica(id="a", key=KEY, phase=ReplicaPhase.RUNNING, coming=(2,))
    starting = Replica(id="b", key=KEY, phase=ReplicaPhase.STARTING)
    assert cause_of([starting, going]) == (Reason.PROGRESSING, "goes over to generation 2", "a")
    assert cause_of([starting]) == (Reason.PROGRESSING, "", "b")


LOADING = EngineStart(part="dense", snapshot=2, stage="loading", seconds=34.0, output="INFO Loading weights")
LOADING_TEXT = "dense snapshot 2: vLLM loads the model, 34 s; last output: INFO Loading weights"


def starting(world, *ready):
    """Let the replicas of part dense report an engine that loads, and be ready for these generations."""
    infrastructure = world.rooms.infrastructure
    observe = infrastructure.observe

    def reported(region, models=None):
        state = observe(region, models)
        change = {"starts": (LOADING,), "ready": ready}
        replicas = (r.model_copy(update=change) if r.key.part == "dense" else r for r in state.replicas)
        return state.model_copy(update={"replicas": tuple(replicas)})

    infrastructure.observe = reported


def test_a_replica_whose_engine_starts_speaks_for_those_that_say_nothing():
    quiet, loading = (Replica(id=i, key=KEY, phase=ReplicaPhase.RUNNING) for i in "ab")
    loading = loading.model_copy(update={"starts": (LOADING,)})
    assert cause_of([quiet, loading]) == (Reason.PROGRESSING, LOADING_TEXT, "b")


async def test_how_far_the_engines_of_a_first_generation_are_is_explained(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    starting(applied)
    answer, steps = await explained(applied)
    assert (answer["ready"], answer["reason"]) == (False, "Progressing")
    assert answer["message"].endswith(LOADING_TEXT)
    assert steps["host"]["subject"].startswith("ranker.dense.cpu")
    told = {r["key"]["part"]: [one["stage"] for one in r["starts"]] for r in (await status_of(applied))["replicas"]}
    assert told == {"dense": ["loading"], "sparse": []}


async def test_how_far_the_engines_of_what_comes_are_is_explained_while_the_former_generation_serves(applied):
    await serving(applied)
    await applied.publish("b")
    with applied.rooms.store.begin() as unit:
        unit.update_model("ranker", target_generation=2)
        for deployment in unit.deployments("ranker"):
            holds = tuple(held.model_copy(update={"generations": (1, 2)}) for held in deployment.holds)
            unit.put_deployment(deployment.model_copy(update={"holds": holds}))
    starting(applied, 1)
    answer, steps = await explained(applied)
    assert (answer["ready"], answer["reason"]) == (False, "Progressing")
    assert answer["message"].endswith(LOADING_TEXT)
    assert steps["part"]["subject"] == "dense"


def test_every_reason_has_an_advice():
    assert set(ADVICE) == set(Reason)


def breach(world, reason, message="dense in eu: snapshot 1 was trained at noon; pick-up is late: paused"):
    with world.rooms.store.begin("ranker") as unit:
        unit.set_condition("ranker", ConditionType.FRESH, "False", reason, message)


@pytest.mark.parametrize(
    ("reason", "stage"),
    [
        (Reason.TRAINING_LATE, "training is late"),
        (Reason.PICK_UP_LATE, "pick-up is late"),
        (Reason.VALIDATION_LATE, "validation is late"),
        (Reason.FREEZE_LATE, "a freeze holds it back"),
        (Reason.SUPPLY_LATE, "supply is late"),
        (Reason.GATE_LATE, "a gate holds it back"),
    ],
)
async def test_a_model_that_is_ready_and_not_fresh_is_explained_by_the_stage_that_is_late(applied, reason, stage):
    await serving(applied)
    breach(applied, reason)
    found, steps = await explained(applied)
    assert (found["ready"], found["reason"]) == (True, reason)
    assert (steps["freshness"]["subject"], steps["freshness"]["state"]) == (stage, "Fresh=False")
    assert (steps["cause"]["subject"], steps["cause"]["message"]) == (reason, found["message"])
    assert found["advice"] == ADVICE[reason].replace("MODEL", "ranker").replace(
        "CHANGE", found["chain"][1]["message"][7:]
    )
    assert conditions_of(await status_of(applied))["Ready"] == ("True", "Serving")


async def test_a_fault_comes_before_freshness_which_stays_in_the_chain(applied):
    await serving(applied)
    breach(applied, Reason.PICK_UP_LATE)
    applied.rooms.infrastructure.cut("eu")
    found, steps = await explained(applied)
    assert found["reason"] == "RegionUnreachable"
    assert steps["freshness"]["message"].endswith("pick-up is late: paused")


async def test_a_fresh_model_has_no_link_of_freshness(applied):
    await serving(applied)
    with applied.rooms.store.begin("ranker") as unit:
        unit.set_condition("ranker", ConditionType.FRESH, "True", Reason.FRESH)
    found, steps = await explained(applied)
    assert found["reason"] == "Serving"
    assert "freshness" not in steps


@pytest.mark.trust
async def test_a_denied_snapshot_that_serves_on_is_what_is_wrong_until_its_denial_ends(applied):
    await serving(applied)
    with applied.rooms.store.read() as unit:
        digest = unit.snapshot("ranker", "dense", 1).digest
    shown = (await applied.http.put(f"/v1/denials/{digest}", json={"reason": "poisoned"})).json()
    assert shown["staying"] == ["ranker"]
    found, steps = await explained(applied)
    assert (found["ready"], found["reason"]) == (True, "SnapshotDenied")
    assert "although" in steps["cause"]["message"]
    assert "is denied: poisoned" in steps["cause"]["message"]
    (await applied.http.delete(f"/v1/denials/{digest}")).raise_for_status()
    found, _ = await explained(applied)
    assert found["reason"] == "Serving"
