"""When a router forgets.

After what was on its way, once for each model, and never for a table that has changed since.
"""

import asyncio

from ipnext.infra.router.delayed_removal import DelayedRemoval
from tests.waiting import eventually

LONG = 3600.0


class Forgot:
    def __init__(self):
        self.models = []

    async def __call__(self, model):
        self.models.append(model)


def test_a_model_is_forgotten_once_what_was_on_its_way_has_arrived():
    async def run():
        forgot = Forgot()
        forgetting = DelayedRemoval(0.0, forgot)
        forgetting.begin("m")
        await eventually(lambda: forgot.models)
        await forgetting.wait_settled("m")
        assert forgot.models == ["m"]

    asyncio.run(run())


def test_nothing_is_forgotten_and_nothing_settled_before():
    async def run():
        forgot = Forgot()
        forgetting = DelayedRemoval(LONG, forgot)
        forgetting.begin("m")
        settled = asyncio.create_task(forgetting.wait_settled("m"))
        await forgetting.wait_settled("another")
        await asyncio.sleep(0.01)
        assert not settled.done()
        assert forgot.models == []
        settled.cancel()
        forgetting.stop()

    asyncio.run(run())


def test_a_table_that_follows_takes_the_place_of_the_forgetting_before_it():
    async def run():
        forgot, hold = [], asyncio.Event()

        async def forget(model):
            await hold.wait()
            forgot.append(model)

        forgetting = DelayedRemoval(0.0, forget)
        forgetting.begin("m")
        await asyncio.sleep(0.01)
        forgetting.begin("m")
        await asyncio.sleep(0.01)
        hold.set()
        await eventually(lambda: forgot)
        await asyncio.sleep(0.01)
        assert forgot == ["m"]

    asyncio.run(run())
