"""What users read of a change that was stopped is in the platform's words, wherever it is told."""

import asyncio

import pytest

from ipnext import names
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.transition_run import TransitionResult

pytestmark = pytest.mark.usefixtures("workers")


async def test_a_rollout_that_a_retirement_stops_says_so_everywhere(
    house, model, client, *, submit, ended, carried_out, until
):
    house.apply(model, rollout={"canary": 0.5, "maxStep": 0.5, "holdSeconds": 600})
    first = house.publish(model, 1)
    await submit(first)
    await until(lambda: house.shares(model).get("us-east"))
    retire = house.ask(model, ChangeKind.RETIRE, f"{model}-retire")
    await submit(retire)
    assert (await ended(first)).state is ChangeState.ROLLED_BACK
    assert (await ended(retire)).state is ChangeState.DONE

    with house.store.read() as unit:
        (transition,) = unit.transitions(model)
        told = [house.change(first.id).message, transition.message]
        told += [event.message for event in unit.events(model)]
        told += [condition.message for condition in unit.conditions(model)]
        told += [generation.message or "" for generation in unit.generations(model)]
    run = client.get_workflow_handle(names.transition_workflow_id(first.id), result_type=TransitionResult)
    result = await asyncio.wait_for(run.result(), 60)
    told.append(result.message)
    assert f"stopped: retire {retire.id} was asked" in result.message, told
    assert not [text for text in told if "cancel" in text.lower()], told
