"""Units of different models do not wait for each other: what the activities of a change write, on PostgreSQL.

By order, not by time: a unit of one model is open while another model's is written, in one thread. If the second one
needed what the first one holds, it would wait for a unit that ends only after it, until the store is Unavailable.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from threading import Event

import pytest
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.deployment.hold_activities import HoldingActivities
from activities.planning.activities import PlanningActivities
from activities.planning.move_window import MoverActivities
from activities.planning.policy import PlanningPolicy
from activities.planning.replan import FleetReplan
from activities.planning.replan_activities import ReplanActivities
from activities.planning.solver import ThreadSolver
from activities.regions.activities import DrainActivities
from activities.regions.drain_check import DrainCheckActivities
from activities.regions.failover import RegionFailover
from activities.state.drained_fleet import DrainedFleet
from activities.transition.activities import TransitionActivities
from activities.transition.draft import Draft
from ipnext import names
from ipnext.errors import StaleWrite, Unavailable
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.fleet import FleetSpec, SupplyItem
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import HoldNote
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput, StageInput
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.model.lifecycle.replans.moves import MoveTurn
from ipnext.model.lifecycle.replans.replan import ReplanResult, ReplanState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GraphNode, PartGraph
from ipnext.store.database import dialects
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.store import Store
from tests.waiting import PATIENCE_SECONDS, until

FLEET = FleetSpec(
    regions=("north", "south"),
    rtt_ms=((1, 20), (20, 1)),
    hardware=("cpu",),
    supply=tuple(SupplyItem(region=region, hardware="cpu", units=100, unit_cost=1) for region in ("north", "south")),
)
MODELS = ("ctr", "other")


@pytest.fixture
def two(applied, make):
    """Two models with a generation each, placed by a plan in force."""
    with applied.begin() as repository:
        repository.put_fleet(FLEET, expected_version=None)
        repository.put_model(make.manifest("other"), expected_version=None)
        for model in MODELS:
            sources = {part: make.source(f"{model}-{part}") for part in ("dense", "sparse")}
            repository.publish(model, sources, change_id=f"{model}-1")
            repository.update_model(model, target_generation=1)
    for model in MODELS:
        place(applied, model)
    return applied


def place(store, model, change_id="place"):
    stage = StageInput(model=model, change_id=f"{model}-{change_id}", kind=ChangeKind.PUBLISH, generation=1)
    planning = PlanningActivities(store, ThreadSolver())
    return ActivityEnvironment().run(planning.place_model, stage)


def finish(store, model, state):
    result = LifecycleResult(state=state, generation=1, reason=Reason.SUCCEEDED)
    record = RecordInput(
        model=model, change_id=f"{model}-1", kind=ChangeKind.PUBLISH, generation=1, result=result, run_id="run"
    )
    return ActivityEnvironment().run(DeploymentActivities(store, None).finish_change, record)


def hold(store, model):
    note = HoldNote(model=model, held=True, reason=Reason.PAUSED, message="by hand", event="paused")
    return ActivityEnvironment().run(HoldingActivities(store).note_hold, note)


def move(store, model):
    with store.begin(f"plan-{model}") as repository:
        repository.list_moves(f"plan-{model}", (model,))
    submitted = []
    turn = MoveTurn(plan_id=f"plan-{model}", window=1)
    ActivityEnvironment().run(MoverActivities(store, submitted.append).move_models, turn)
    assert [change.model for change in submitted] == [model]


WRITES = {
    "done": lambda store, model: finish(store, model, ChangeState.DONE),
    "rolled back": lambda store, model: finish(store, model, ChangeState.ROLLED_BACK),
    "hold": hold,
    "move": move,
}


@contextmanager
def unit_of(store, model):
    """A unit of a model that has written."""
    with store.begin(model) as repository:
        repository.add_event(model, "Open", "this unit is open")
        yield


@pytest.fixture
def impatient(url, two, monkeypatch):
    """A second store on the same database, which gives up at once where it would have to wait."""
    monkeypatch.setattr(dialects, "LOCK_SECONDS", 1)
    store = Store.open(url)
    yield store
    store.close()


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
@pytest.mark.parametrize("write", WRITES)
def test_a_writer_of_one_model_goes_on_while_a_unit_of_another_is_open(two, impatient, write):
    with unit_of(two, "ctr"):
        WRITES[write](impatient, "other")


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_a_model_is_placed_while_a_unit_of_another_is_open(two, impatient, make):
    with two.begin("other") as repository:
        repository.put_model(make.manifest("other", qps=300.0), expected_version=None)
    before = plan_of(two, "other")
    with unit_of(two, "ctr"):
        place(impatient, "other", "again")
    assert plan_of(two, "other") != before


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_a_unit_of_all_models_waits_for_the_unit_of_one(two, impatient):
    """What the tests above would see if those writers were exclusive."""
    with unit_of(two, "ctr"), pytest.raises(Unavailable), impatient.begin() as repository:
        repository.add_event(None, "All", "")


def plan_of(store, model):
    with store.read() as repository:
        return repository.placement(model).plan_id


class Watched:
    """A store that remembers which models its writing units are of, and allows none while `closed`."""

    def __init__(self, store) -> None:
        self._store, self.scopes, self.read = store, [], store.read

    @contextmanager
    def begin(self, model=None):
        self.scopes.append(model)
        with self._store.begin(model) as repository:
            yield repository


def test_a_drain_that_nothing_happens_to_writes_nothing(two):
    with two.begin() as repository:
        drain = repository.add_drain("north")
        repository.update_drain(drain.id, state=DrainState.DRAINING)
    watched = Watched(two)
    looks = DrainActivities(watched, None, lambda: None, lambda *_: None)
    first = ActivityEnvironment().run(looks.look_at_drain, DrainInput(region="north"))
    assert first.models_left == 2
    assert None in watched.scopes
    watched.scopes.clear()

    again = ActivityEnvironment().run(looks.look_at_drain, DrainInput(region="north"))

    assert again == first.model_copy(update={"message": again.message})
    assert watched.scopes == []


def test_a_planned_drain_says_that_a_pause_of_the_moves_holds_it_up(two):
    with two.begin() as repository:
        drain = repository.add_drain("north")
        repository.update_drain(drain.id, state=DrainState.DRAINING)
        repository.pause_moves("release night")
    looks = DrainActivities(two, None, lambda: None, lambda *_: None)
    paused = ActivityEnvironment().run(looks.look_at_drain, DrainInput(region="north"))
    assert paused.message == "models move away once moves go on; they are paused: release night"
    with two.begin() as repository:
        repository.resume_moves()
    assert ActivityEnvironment().run(looks.look_at_drain, DrainInput(region="north")).message == "models move away"


def test_the_fleet_is_read_beside_the_writers_when_a_drain_is_checked(two, monkeypatch):
    """While `check_drain` reads the fleet other units write."""
    with two.begin() as repository:
        repository.add_drain("north")
    checks = DrainCheckActivities(two, ThreadSolver())
    seen = []

    def written(drains):
        if not seen:
            seen.append(True)
            with two.begin("ctr") as repository:
                repository.add_event("ctr", "Written", "while the fleet is read")
        return DrainedFleet(frozenset(drain.region for drain in drains if drain.holds))

    monkeypatch.setattr("activities.regions.drain_check.DrainedFleet.of", written)
    ActivityEnvironment().run(checks.check_drain, DrainInput(region="north"))
    assert seen == [True]


def test_a_drain_that_another_region_joins_while_the_fleet_is_read_is_checked_again(two, monkeypatch):
    with two.begin() as repository:
        repository.add_drain("north")
    asked = []
    real = DrainCheckActivities._refusal

    def refusal(self, snapshot, say):
        asked.append(snapshot)
        if len(asked) == 1:
            with two.begin() as repository:
                drain = repository.add_drain("south")
                repository.update_drain(drain.id, state=DrainState.DRAINING)
        return real(self, snapshot, say)

    monkeypatch.setattr(DrainCheckActivities, "_refusal", refusal)
    result = ActivityEnvironment().run(
        DrainCheckActivities(two, ThreadSolver()).check_drain, DrainInput(region="north")
    )
    assert len(asked) == 2
    assert result.state is DrainState.REFUSED


def test_only_moves_of_a_lost_regions_repair_pass_a_pause(two):
    def asked(plan):
        submitted = []
        turn = MoveTurn(plan_id=plan, window=1)
        answer = ActivityEnvironment().run(MoverActivities(two, submitted.append).move_models, turn)
        return [change.id for change in submitted], answer.progress.paused

    with two.begin() as repository:
        repository.pause_moves("release night")
        for replan, trigger in (("hourly", "manual"), ("repair", "drain")):
            repository.add_replan(replan, trigger, dry_run=trigger == "manual")
            repository.claim_replans(replan, run_id="run")
            repository.list_moves(replan, ("ctr",))
            repository.update_replans(replan, state=ReplanState.ADOPTED)
    assert asked("repair") == ([], "release night"), "no region is lost"
    with two.begin() as repository:
        repository.add_drain("south", disaster=True)
    assert asked("hourly") == ([], "release night")
    assert asked("repair") == ([names.move_id(plan_of(two, "ctr"), "ctr")], "")


def prepared(store, model, plan_id):
    """The plan of one model once more, under another id."""
    with store.read() as repository:
        record = repository.plan(repository.placement(model).plan_id)
        return PreparedPlan.of(record.model_copy(update={"id": plan_id})), repository.plan_in_force_id()


def waits_for_a_lock(store):
    with store.read() as repository:
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return repository.connection().scalar(query)


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_of_two_models_that_adopt_their_plans_from_one_plan_the_second_is_refused(two):
    first, base = prepared(two, "ctr", "first")
    second, _ = prepared(two, "other", "second")

    def adopt_second():
        with two.begin("other") as repository:
            repository.adopt_plan(second, expected=base)

    with ThreadPoolExecutor(1) as pool:
        with two.begin("ctr") as repository:
            repository.adopt_plan(first, expected=base)
            adopting = pool.submit(adopt_second)
            until(lambda: waits_for_a_lock(two))
        with pytest.raises(StaleWrite, match="'first' is in force"):
            adopting.result(PATIENCE_SECONDS)
    with two.read() as repository:
        assert repository.plan_in_force_id() == "first"


def admit(store, model):
    stage = StageInput(model=model, change_id=f"{model}-1", kind=ChangeKind.PUBLISH, generation=1)
    transitions = TransitionActivities(store, MemoryInfrastructure(FLEET.regions))
    return ActivityEnvironment().run(transitions.plan_transition, stage)


def routed_to_a_lost_region(store):
    """Both models answer in both regions, and each region's users are spread over them; then south is lost."""
    infrastructure = MemoryInfrastructure(FLEET.regions)
    held = AssignedSnapshot(snapshot=1, digest="0" * 64, uri="file:///x", generations=(1,))
    served = ServedGeneration(
        generation=1,
        graph=PartGraph(nodes=(GraphNode(name="dense", part="dense", inputs={}),), outputs={"score": "dense.score"}),
        snapshots={"dense": 1, "sparse": 1},
    )
    shares = tuple(RouteShare(to=region, generation=1, fraction=0.5) for region in FLEET.regions)
    with store.begin() as repository:
        for model, region in product(MODELS, FLEET.regions):
            for part in ("dense", "sparse"):
                key = DeploymentKey(model=model, part=part, region=region, hardware="cpu")
                deployment = Deployment(key=key, replicas=1, engine="torch", units=1, qps=100, holds=(held,))
                infrastructure.apply(repository.put_deployment(deployment))
            table = RouteTable(model=model, region=region, revision=1, shares=shares, served=(served,))
            infrastructure.route(repository.put_route(table))
        repository.add_drain("south", disaster=True)
    infrastructure.cut("south")
    return infrastructure


def sent_to(store, model):
    with store.read() as repository:
        return {share.to for share in repository.route(model, "north").shares}


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_waves_are_admitted_while_a_unit_of_another_model_is_open(two, impatient):
    with unit_of(two, "ctr"):
        assert admit(impatient, "other").refused is None


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_of_two_models_the_second_is_admitted_by_what_the_first_one_takes(two, monkeypatch):
    """Otherwise both would count on the same supply. Units that take none go on meanwhile."""
    admissions, compared, go_on, real = [], Event(), Event(), Draft.holds

    def holds(draft, repository, stage):
        admissions.append((stage.model, len(repository.moving_models(but=stage.model))))
        if stage.model == "ctr":
            compared.set()
            assert go_on.wait(PATIENCE_SECONDS)
        return real(draft, repository, stage)

    monkeypatch.setattr(Draft, "holds", holds)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(admit, two, "ctr")
        try:
            assert compared.wait(PATIENCE_SECONDS)
            second = pool.submit(admit, two, "other")
            until(lambda: waits_for_a_lock(two))
            hold(two, "third")
            assert admissions == [("ctr", 0)]
        finally:
            go_on.set()
        assert [first.result(PATIENCE_SECONDS).waves, second.result(PATIENCE_SECONDS).waves] == [1, 1]
    assert admissions == [("ctr", 0), ("other", 1)]


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_a_plan_of_the_fleet_is_written_while_a_unit_of_a_model_is_open(two, impatient):
    with two.begin() as repository:
        supply = tuple(item.model_copy(update={"units": 0}) for item in FLEET.supply if item.region == "north")
        repository.put_fleet(FLEET.model_copy(update={"supply": (*supply, FLEET.supply[1])}), expected_version=None)
        repository.add_replan("asked", "manual")
    with ExitStack() as stack:

        def say(what):
            if what == "writing the plan":
                stack.enter_context(unit_of(two, "ctr"))

        replan = FleetReplan(impatient, ThreadSolver(), PlanningPolicy(), say=say)
        answer = replan.compute("fleet-plan", run_id="run")
        result = ReplanResult(plan_id="fleet-plan", adopted=True, message=answer.message, moves=answer.moves)
        ActivityEnvironment().run(ReplanActivities(impatient, lambda: None).finish_replan, result)
        assert answer.adopted
    assert plan_of(two, "ctr") == "fleet-plan"
    with two.read() as repository:
        assert repository.replan("asked").state is ReplanState.ADOPTED


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_while_a_plan_of_the_fleet_is_written_only_who_is_placed_waits(two, impatient, make):
    """Units of models go on; one that adopts a placement is refused once the plan of the fleet is in force."""
    with two.begin("other") as repository:
        repository.put_model(make.manifest("other", qps=300.0), expected_version=None)
    first, base = prepared(two, "ctr", "fleet-plan")
    fleet = PreparedPlan.of(first.record.model_copy(update={"scope": None}))

    def adopt_other():
        adopted, _ = prepared(two, "other", "newer")
        with two.begin("other") as repository:
            repository.adopt_plan(adopted, expected=base)

    with ThreadPoolExecutor(1) as pool:
        with two.begin("fleet-plan") as repository:
            repository.adopt_plan(fleet, expected=base, keeping=("other",))
            hold(impatient, "ctr")
            hold(impatient, "other")
            adopting = pool.submit(adopt_other)
            until(lambda: waits_for_a_lock(two))
        with pytest.raises(StaleWrite, match="'fleet-plan' is in force"):
            adopting.result(PATIENCE_SECONDS)


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_a_lost_regions_tables_are_kept_while_a_unit_of_one_model_is_open(two):
    """Others do not wait for it, and its own tables are kept when it has ended."""
    infrastructure = routed_to_a_lost_region(two)
    with ThreadPoolExecutor(1) as pool:
        with unit_of(two, "ctr"):
            sending = pool.submit(RegionFailover(two, infrastructure).send_around, "south")
            until(lambda: sent_to(two, "other") == {"north"})
            until(lambda: waits_for_a_lock(two))
            assert sent_to(two, "ctr") == {"north", "south"}
            assert infrastructure.table("ctr", "north").shares == infrastructure.table("other", "north").shares
        sent = sending.result(PATIENCE_SECONDS)
    assert (sent.models, sent_to(two, "ctr")) == (2, {"north"})


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_units_of_models_wait_for_a_batch_that_writes_them_and_no_others_do(two, impatient):
    with two.begin_free(["ctr", "third"]) as batch:
        assert batch.scope == {"ctr", "third"}
        hold(impatient, "other")
        with pytest.raises(Unavailable):
            hold(impatient, "ctr")
        with two.begin_free(["ctr", "other"]) as second:
            assert second.scope == {"other"}
            with pytest.raises(RuntimeError, match="writes model 'other' only, not model 'ctr'"):
                second.add_event("ctr", "Test", "")
