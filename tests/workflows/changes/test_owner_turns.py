"""Validations of one owner leave slots to the other owners, and cost the changes that wait none of their attempts."""

import asyncio
import contextlib
import threading

import pytest

from activities.planning.solver import ThreadSolver
from activities.runtime.owner_turns import OwnerShares
from activities.validation.validator import FunctionValidator, pass_check
from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.parser import parse_manifest
from tests.waiting import PATIENCE_SECONDS
from tests.workflows.house import manifest
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

SLOTS = 4
GREEDY = "greedy"


class Held:
    """Holds the validations of one owner until they are released."""

    def __init__(self):
        self.released = threading.Event()
        self.running = set()

    def check(self, candidate):
        if candidate.manifest.metadata.owner == GREEDY:
            self.running.add(candidate.manifest.name)
            assert self.released.wait(PATIENCE_SECONDS)
            self.running.remove(candidate.manifest.name)
        yield pass_check("held", candidate.manifest.name)


@pytest.fixture
def held():
    found = Held()
    yield found
    found.released.set()


@pytest.fixture
def few_slots(house, client, held):
    """Workers whose lifecycle queue has few slots, for as long as the context is open."""

    @contextlib.asynccontextmanager
    async def serve():
        devfile, engine = read_devfile(), engine_of(lambda: client, asyncio.get_running_loop())
        lifecycle = devfile.group(names.LIFECYCLE_QUEUE).model_copy(update={"activity_slots": SLOTS})
        urgent, planner = devfile.group(names.URGENT_QUEUE), devfile.group(names.PLANNER_QUEUE)
        shares = OwnerShares({group.queue: group.activity_slots for group in (lifecycle, urgent, planner)})
        ours = lifecycle_activities(
            house.store,
            house.artifacts,
            house.infrastructure,
            engine,
            validators=(FunctionValidator("held", held.check),),
            shares=shares,
        )
        theirs = planner_activities(house.store, ThreadSolver(), shares=shares)
        async with (
            worker_of(client, lifecycle, ours, devfile.timing),
            worker_of(client, urgent, ours, devfile.timing),
            worker_of(client, planner, theirs, devfile.timing),
        ):
            yield

    return serve


@pytest.fixture
def publish(house, submit):
    """Publish the first generation of a model of an owner."""

    async def begin(name, owner):
        document = manifest(name, demand=[{"region": "us-east", "qps": 50}])
        document["metadata"]["owner"] = owner
        with house.store.begin() as unit:
            unit.put_model(parse_manifest(document), expected_version=None)
        change = house.publish(name, 1)
        await submit(change)
        return change

    return begin


async def test_an_owner_whose_validations_would_take_all_slots_holds_up_no_other_one(
    house, model, few_slots, publish, held, *, ended, until
):
    async with few_slots():
        greedy = [await publish(f"{model}-{number}", GREEDY) for number in range(SLOTS + 1)]
        await until(lambda: held.running)

        modest = await publish(model, "modest")
        assert (await ended(modest)).state is ChangeState.DONE

        assert len(held.running) == 1, "an owner has a fourth of the slots"
        waiting = [house.change(change.id) for change in greedy if change.model not in held.running]
        await until(lambda: any("takes its share" in house.change(each.id).message for each in waiting))
        told = next(each for each in map(house.change, (each.id for each in waiting)) if each.message)
        assert told.reason is Reason.UNAVAILABLE
        held.released.set()
        for change in greedy:
            assert (await ended(change)).state is ChangeState.DONE
