"""A region's drain in tests: asking for it, waiting for its states, and where models are meanwhile."""

import contextlib
import time
from datetime import timedelta

from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.service import RPCError

from ipnext import names
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.temporal import signal_drain
from tests.waiting import PATIENCE_SECONDS

DEMAND = {"us-east": 350.0, "eu-west": 180.0}
EUROPE = "eu-west"


class Drains:
    """Asks for drains as the API and its outbox do."""

    def __init__(self, house, client, until) -> None:
        self._house, self._client, self._until = house, client, until

    async def ask(self, region=EUROPE, **more):
        with self._house.store.begin() as repository:
            drain = repository.add_drain(region, **more)
        await signal_drain(self._client, region)
        return drain

    async def ask_back(self, region=EUROPE):
        with self._house.store.begin() as repository:
            repository.ask_return(region)
        await signal_drain(self._client, region)

    async def reaches(self, *states, region=EUROPE):
        """Wait until a region's drain is in one of some states."""
        return await self._until(lambda: found if (found := drain_of(self._house, region)).state in states else None)

    async def shows(self, word, region=EUROPE):
        """Wait until the workflow's page has a word: it hears what was written down with its next task."""
        handle, deadline = (
            self._client.get_workflow_handle(names.drain_workflow_id(region)),
            time.monotonic() + PATIENCE_SECONDS,
        )
        while True:
            shown = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
            if word in shown.current_details:
                return
            assert time.monotonic() < deadline, shown.current_details

    async def end(self):
        """All tests share one server: none may leave a drain or a replan behind."""
        for left in (names.REPLAN_ID, *map(names.drain_workflow_id, DEMAND)):
            with contextlib.suppress(RPCError):
                await self._client.get_workflow_handle(left).terminate("its test has ended")


def drain_of(house, region=EUROPE):
    with house.store.read() as repository:
        return repository.drain(region)


def regions(house, model):
    with house.store.read() as repository:
        return {d.key.region for d in repository.deployments(model)}


def destinations(house, model):
    """Where the gateways that are left send a model's requests."""
    tables = [house.infrastructure.table(model, region) for region in DEMAND]
    return {share.to for table in tables if table for share in table.shares if share.fraction > 0}


def stored_destinations(house, model):
    with house.store.read() as repository:
        return {share.to for table in repository.routes(model) for share in table.shares}


async def replans_ended(house, until):
    """Wait for the replans, but for those after a failed move: they are due later, and the API's outbox wakes them."""

    def is_delayed(replan):
        return replan.state is ReplanState.RECORDED and replan.not_before - replan.created_at > timedelta(seconds=1)

    def all_ended():
        with house.store.read() as repository:
            return all(replan.state.final or is_delayed(replan) for replan in repository.replans())

    await until(all_ended)
