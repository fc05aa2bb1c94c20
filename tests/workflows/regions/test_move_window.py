"""A replan moves a fleet.

It does so in a window, in an order that supply allows, paused and resumed, past models that are held.
"""

import contextlib

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.service import RPCError

from activities.planning.policy import PlanningPolicy
from ipnext import names
from ipnext.errors import Conflict
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.replans.moves import MoverAsked
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.temporal import cancel_replan, signal_steering, wake_replan
from tests.waiting import PATIENCE_SECONDS, until_told

WITHOUT_AMERICA = ("region: us-east, hardware: cpu, units: 400", "region: us-east, hardware: cpu, units: 0")
SMALL = {"demand": [{"region": "us-east", "qps": 50}, {"region": "eu-west", "qps": 50}]}
"""One replica of each part serves all of it, in the cheaper region: us-east."""

TOGETHER = 8
"""Models that are published side by side: more at once only make each of them late on a busy machine."""


@pytest.fixture(autouse=True)
async def idle(client):
    yield
    with contextlib.suppress(RPCError):
        await client.get_workflow_handle(names.REPLAN_ID).terminate("its test has ended")


@pytest.fixture
def fleet(kit) -> str:
    return kit.FLEET.replace("units: 40", "units: 400")


@pytest.fixture
def many(house, model, fleet, submit, ended):
    """So many models that serve, all in us-east."""

    async def publish(count):
        house.apply_fleet(fleet)
        found = tuple(f"{model}-{number:03}" for number in range(count))
        for start in range(0, count, TOGETHER):
            changes = []
            for number, name in enumerate(found[start : start + TOGETHER], start):
                house.apply(name, **SMALL)
                changes.append(house.publish(name, number + 1))
                await submit(changes[-1])
            for change in changes:
                await ended(change)
        return found

    return publish


@pytest.fixture
def asked(house, client):
    async def ask(replan_id="r1"):
        house.ask_replan(replan_id, "manual")
        await wake_replan(client)

    return ask


@pytest.fixture
def over(house, until):
    async def wait(replan_id="r1", seconds=PATIENCE_SECONDS):
        return await until(lambda: found if (found := house.replan(replan_id)).state.final else None, seconds=seconds)

    return wait


@pytest.fixture
def steered(house, client):
    """Pauses or resumes the moves as the API does."""

    async def steer(action, reason=""):
        with house.store.begin() as repository:
            repository.pause_moves(reason) if action == "pause" else repository.resume_moves()
        await signal_steering(client)

    return steer


def needed_units(house):
    with house.store.read() as repository:
        return repository.units_needed(but=())


async def shows(client, words):
    """The workflow's page once it has these words: it hears what was written down with its next task."""
    handle = client.get_workflow_handle(names.REPLAN_ID)

    async def there():
        shown = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
        return shown.current_details if words in shown.current_details else None

    return await until_told(there)


async def idle_again(client, until):
    """Until the run has looked at what waits, and waits itself for the end of the pause."""

    async def looks():
        history = await client.get_workflow_handle(names.REPLAN_ID).fetch_history()
        kinds = [event.WhichOneof("attributes") for event in history.events]
        names_ = [
            event.activity_task_scheduled_event_attributes.activity_type.name
            for event in history.events
            if event.HasField("activity_task_scheduled_event_attributes")
        ]
        return "waiting_replans" in names_ and names_[-1] == "move_models" and kinds[-1] != "activity_task_scheduled"

    await until_told(looks)


def moved(house, models):
    with house.store.read() as repository:
        return sum({d.key.region for d in repository.deployments(name)} == {"eu-west"} for name in models)


def moves_asked(house, models):
    with house.store.read() as repository:
        return sum(c.kind is ChangeKind.MOVE for name in models for c in repository.changes(name))


async def history_length(client):
    history = await client.get_workflow_handle(names.REPLAN_ID).fetch_history()
    return len(history.events)


async def test_no_more_models_than_the_window_move_at_a_time(house, fleet, serving, many, *, asked, over, until):
    async with serving(policy=PlanningPolicy(window=2)):
        models = await many(5)
        house.apply_fleet(fleet.replace(*WITHOUT_AMERICA))
        house.infrastructure.stall()
        await asked()
        await until(lambda: moves_asked(house, models) == 2)
        progress = await until(lambda: house.replan("r1").progress)
        assert progress.total == 5
        assert moves_asked(house, models) == 2
        house.infrastructure.release()

        replan = await over()

    assert replan.state is ReplanState.ADOPTED
    assert (replan.progress.moved, replan.progress.waiting, replan.progress.failed) == (5, 0, 0)
    assert moved(house, models) == 5


async def test_a_replan_is_paused_resumed_and_tells_how_far_it_is(
    house, fleet, serving, many, *, asked, over, until, client, steered
):
    async with serving(policy=PlanningPolicy(window=1)):
        models = await many(3)
        house.apply_fleet(fleet.replace(*WITHOUT_AMERICA))
        house.infrastructure.stall()
        await asked()
        await until(lambda: moves_asked(house, models) == 1)
        await steered("pause", "release night")
        house.infrastructure.release()
        await until(lambda: moved(house, models) == 1)
        await until(lambda: (found := house.replan("r1").progress) and found.paused and found.moved == 1)
        shown = await shows(client, "| moved | 1 of 3 | 33 % |")
        assert "release night" in shown
        assert moves_asked(house, models) == 1

        await steered("resume")
        replan = await over()

    assert (replan.progress.moved, replan.progress.paused) == (3, "")
    assert moved(house, models) == 3


async def test_a_replan_that_is_asked_for_while_moves_are_paused_waits_for_the_end_of_the_pause(
    house, fleet, serving, many, *, asked, over, until, client, steered
):
    """Another plan would count models twice for as long as the pause lasts.

    Once where they run, and once where they are to go.
    """
    async with serving(policy=PlanningPolicy(window=1)):
        models = await many(2)
        house.apply_fleet(fleet.replace(*WITHOUT_AMERICA))
        house.infrastructure.stall()
        await asked()
        await until(lambda: moves_asked(house, models) == 1)
        await steered("pause", "wait")
        house.infrastructure.release()
        await until(lambda: (found := house.replan("r1").progress) and found.paused and found.moved == 1)
        needed = needed_units(house)

        await asked("r2")
        await idle_again(client, until)

        assert house.replan("r1").state is ReplanState.MOVING
        assert house.replan("r2").plan_id is None
        assert needed_units(house) == needed
        assert moves_asked(house, models) == 1
        await steered("resume")
        await over("r1")
        await asked("r2")
        await over("r2")

    assert moved(house, models) == 2


async def test_moves_that_are_paused_while_no_replan_runs_are_seen_and_resumed(
    house, fleet, serving, many, *, asked, over, until, client, steered
):
    async with serving(policy=PlanningPolicy(window=1)):
        models = await many(1)
        await steered("pause", "release night")
        house.apply_fleet(fleet.replace(*WITHOUT_AMERICA))
        await asked()
        handle = client.get_workflow_handle(names.REPLAN_ID)
        assert "release night" in (await handle.result())["message"]
        with house.store.read() as repository:
            assert repository.moves_pause().reason == "release night"
        assert moves_asked(house, models) == 0

        await steered("resume")
        assert house.replan("r1").state is ReplanState.RECORDED
        await asked()
        await over()

    assert moved(house, models) == 1


async def test_a_cancelled_replan_ends_and_says_who_stays(house, fleet, serving, many, *, asked, over, until, client):
    async with serving(policy=PlanningPolicy(window=1)):
        models = await many(3)
        house.apply_fleet(fleet.replace(*WITHOUT_AMERICA))
        house.infrastructure.stall()
        await asked()
        await until(lambda: moves_asked(house, models) == 1)
        await cancel_replan(client, MoverAsked(reason="wrong day"))
        house.infrastructure.release()
        replan = await over()
        assert "stopped (wrong day): 2 models stay where they are" in replan.message
        assert moved(house, models) == 1

        await asked("again")
        await over("again")

    assert moved(house, models) == 3


async def test_nothing_is_there_to_cancel_while_no_replan_runs(client, workers):
    with pytest.raises(Conflict, match="no replan is running"):
        await cancel_replan(client, MoverAsked())


async def test_a_model_that_is_held_takes_no_place_of_the_window_and_does_not_keep_the_replan(
    house, fleet, serving, many, *, asked, over, until
):
    async with serving(policy=PlanningPolicy(window=1)):
        models = await many(3)
        house.apply_fleet(fleet.replace(*WITHOUT_AMERICA))
        held = models[0]
        for part in ("sparse", "dense"):
            house.infrastructure.stall(DeploymentKey(model=held, part=part, region="eu-west", hardware="cpu"))
        with house.store.begin() as repository:
            repository.set_condition(held, ConditionType.PROGRESSING, "False", Reason.FROZEN, "until Monday")
        await asked()
        await until(lambda: moved(house, models) == 2)

        replan = await over()

        assert replan.state is ReplanState.ADOPTED
        assert f"held, and moving when they may: {held}" in replan.message
        assert replan.progress.held_models == (held,)
        house.infrastructure.release()
        await until(lambda: moved(house, models) == 3)


async def test_a_model_waits_for_what_another_frees_and_no_move_is_asked_before_there_is_room(
    house, kit, model, serving, *, carried_out, asked, over
):
    """What is left is just enough for both."""
    first, second = f"{model}-a", f"{model}-b"
    east = {"demand": [{"region": "us-east", "qps": 1000}], "latencyToleranceMs": 100}
    west = {"demand": [{"region": "eu-west", "qps": 1000}], "latencyToleranceMs": 20}
    house.apply_fleet(kit.FLEET.replace("us-east, hardware: cpu, units: 40", "us-east, hardware: cpu, units: 20"))
    async with serving():
        house.apply(first, **east)
        await carried_out(house.publish(first, 1))
        house.apply(second, **west)
        await carried_out(house.publish(second, 1))
        assert {k.region for k in all_keys(house, first)} == {"us-east"}
        house.apply_fleet(kit.FLEET.replace("us-east, hardware: cpu, units: 40", "us-east, hardware: cpu, units: 0"))
        await asked()
        replan = await over()

    assert replan.progress.failed == 0
    assert {k.region for k in all_keys(house, first)} == {"eu-west"}


def all_keys(house, model):
    with house.store.read() as repository:
        return [d.key for d in repository.deployments(model) if d.replicas]


@pytest.mark.filterwarnings("ignore:Cannot find activity to cancel")  # the SDK's, where a busy machine is late
@pytest.mark.parametrize(("count", "window"), [(10, 8), pytest.param(200, 16, marks=pytest.mark.nemesis)])
async def test_a_fleet_moves_with_a_bounded_history(house, fleet, serving, many, *, asked, over, client, count, window):
    async with serving(policy=PlanningPolicy(window=window)):
        models = await many(count)
        house.apply_fleet(fleet.replace(*WITHOUT_AMERICA))
        await asked()
        replan = await over(seconds=400)
        length = await history_length(client)

    assert replan.state is ReplanState.ADOPTED, replan.message
    assert replan.progress.failed == 0, replan.message
    assert replan.progress.moved == count
    assert moved(house, models) == count
    assert length < 2500, "no more events than at which a run continues as new"
