"""A platform whose payloads are encrypted, on a real Temporal server: it works, and the server stores no values."""

from dataclasses import replace

import pytest
from temporalio.client import Client
from temporalio.worker import Replayer

from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.errors import EngineRefused
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.status import Reason
from ipnext.payload_keys import PayloadKeys
from ipnext.temporal import connect, control, submit_change
from ipnext.temporal_access import TemporalSettings, read_access
from workflows.runtime.sealed_reasons import runner_of
from workflows.worker import WORKFLOWS

PACE = {"canary": 0.1, "maxStep": 1.0, "deadlineSeconds": 180}
CANARY = {"us-east": {1: 0.9, 2: 0.1}, "eu-west": {1: 0.9, 2: 0.1}}
CLEAR, OLD, NEW = (PayloadKeys(name, {"old": bytes(32), "new": bytes(range(32))}) for name in (None, "old", "new"))


async def connected(address, keys) -> Client:
    access = replace(read_access(TemporalSettings()), payload_keys=None if keys is None else lambda: keys)
    return await connect(address=address, timing=read_devfile().timing, access=access)


@pytest.fixture
async def client(temporal_address) -> Client:
    """Of workers and tests: it encrypts by the new key."""
    return await connected(temporal_address, NEW)


async def stored(address, workflow_id):
    """Return the bytes of a history as the server has it."""
    history = await (await connected(address, None)).get_workflow_handle(workflow_id).fetch_history()
    return b"".join(event.SerializeToString() for event in history.events)


@pytest.mark.usefixtures("workers")
async def test_a_change_is_carried_out_and_no_value_is_stored(house, model, client, carried_out, temporal_address):
    house.apply(model)
    change = house.publish(model, 1)
    assert (await carried_out(change)).state is ChangeState.DONE
    for workflow_id in (names.model_workflow_id(model), names.lifecycle_workflow_id(model, change.id)):
        content = await stored(temporal_address, workflow_id)
        assert b"binary/encrypted" in content
        assert b'{"' not in content  # all values of ours are JSON objects; search attributes are none


@pytest.mark.usefixtures("workers")
async def test_what_a_former_key_or_none_has_stored_is_read(house, model, ended, temporal_address):
    house.apply(model)
    for seed, keys in enumerate((CLEAR, OLD), 1):
        change = house.publish(model, seed)
        await submit_change(await connected(temporal_address, keys), change)
        assert (await ended(change)).state is ChangeState.DONE


@pytest.mark.usefixtures("workers")
async def test_an_answer_that_a_caller_has_no_key_for_ends_no_change(house, model, ended, temporal_address):
    house.apply(model)
    change = house.publish(model, 1)
    old_only = PayloadKeys("old", {"old": bytes(32)})
    with pytest.raises(EngineRefused, match="encrypted by the key 'new', which is none of old"):
        await submit_change(await connected(temporal_address, old_only), change)
    assert (await ended(change)).state is ChangeState.DONE


async def test_the_reason_of_a_cancellation_is_not_stored_and_is_told(
    house, model, client, workers, carried_out, submit, until, ended, temporal_address
):
    house.apply(model, rollout=PACE)
    assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
    house.apply(model, rollout={**PACE, "holdSeconds": 600})
    change = house.publish(model, 2)
    await submit(change)
    await until(lambda: house.shares(model) == CANARY)
    told = "looks odd " * 100
    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna", reason=told))
    end = await ended(change)
    assert (end.state, end.reason) == (ChangeState.ROLLED_BACK, Reason.ABORTED)
    assert end.message.startswith("aborted by anna: looks odd")
    run = names.lifecycle_workflow_id(model, change.id)
    for workflow_id in (names.model_workflow_id(model), run, names.transition_workflow_id(change.id)):
        assert b"looks odd" not in await stored(temporal_address, workflow_id)
        history = await client.get_workflow_handle(workflow_id).fetch_history()
        converter = client.data_converter
        replayer = Replayer(workflows=WORKFLOWS, data_converter=converter, workflow_runner=runner_of(converter))
        await replayer.replay_workflow(history)
