"""A manifest that no validation accepted changes nothing of what serves, whichever change moves the model next."""

import pytest

from ipnext.artifacts.signing import write_key_pair
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.temporal import signal_freeze_change
from tests.workflows.changes.test_freezes import freeze_manifest

pytestmark = pytest.mark.usefixtures("workers")

GIB = 2**30


def parts(memory_bytes, batch):
    part = {
        "engine": "torch",
        "hardware": [{"kind": "cpu", "units": 1, "qps": 100}],
        "memoryBytes": memory_bytes,
        "settings": {"batching": {"maxRows": batch}},
    }
    return [{"name": "sparse", **part}, {"name": "dense", **part}]


def unsigned(tmp_path):
    """A policy that refuses every snapshot of these tests: none is signed."""
    write_key_pair(tmp_path / "ci.pem", tmp_path / "ci.pub.pem")
    return {"signers": {"publicKeys": [(tmp_path / "ci.pub.pem").read_text()]}}


@pytest.fixture
def started(house, model):
    """What the replicas of the model are started with."""

    def found():
        with house.store.read() as repository:
            deployments = repository.deployments(model)
        assert deployments
        return {(d.memory_bytes, d.settings["batching"]["maxRows"]) for d in deployments}

    return found


@pytest.fixture
async def served(house, model, carried_out, started):
    house.apply(model, parts=parts(GIB, 8))
    await carried_out(house.publish(model, 1))
    assert started() == {(GIB, 8)}


@pytest.fixture
def move(house, model, carried_out):
    """Move the model by a change that validates nothing."""

    async def call(kind):
        more = {}
        if kind is ChangeKind.MOVE:
            with house.store.read() as repository:
                more = {"plan_id": repository.placement(model).plan_id}
        change = await carried_out(house.ask(model, kind, f"{model}-{kind.value}", **more))
        assert change.state is ChangeState.DONE, change.message

    return call


@pytest.mark.parametrize("kind", [ChangeKind.REPAIR, ChangeKind.MOVE])
async def test_no_move_starts_replicas_by_a_refused_manifest(
    house, model, carried_out, started, served, move, tmp_path, kind
):
    house.apply(model, parts=parts(64 * GIB, 512), validation=unsigned(tmp_path))
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.SIGNATURE_INVALID)

    await move(kind)

    assert started() == {(GIB, 8)}


async def test_no_move_starts_replicas_by_a_manifest_that_is_not_validated_yet(house, model, started, served, move):
    house.apply(model, parts=parts(64 * GIB, 512))
    await move(ChangeKind.REPAIR)
    assert started() == {(GIB, 8)}


async def test_an_accepted_manifest_is_what_moves_go_by(house, model, carried_out, started, served, move):
    house.apply(model, parts=parts(2 * GIB, 16))
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    assert change.state is ChangeState.DONE
    assert started() == {(2 * GIB, 16)}

    await move(ChangeKind.REPAIR)

    assert started() == {(2 * GIB, 16)}


async def test_a_repair_that_passes_a_frozen_manifest_goes_by_the_former_one(
    house, client, model, submit, ended, until, started, served, move
):
    with house.store.begin() as unit:
        unit.put_freeze(freeze_manifest("sale", 3600, models=[model]), expected_version=None)
    house.apply(model, parts=parts(64 * GIB, 512))
    frozen = house.ask(model, ChangeKind.APPLY, f"{model}-apply")
    await submit(frozen)
    await until(lambda: house.change(frozen.id).reason is Reason.FROZEN)

    await move(ChangeKind.REPAIR)
    assert started() == {(GIB, 8)}

    with house.store.begin() as unit:
        unit.override_freezes(frozen.id, who="ann", reason="users wait", passes=None)
    await signal_freeze_change(client, frozen)
    assert (await ended(frozen)).state is ChangeState.DONE
    assert started() == {(64 * GIB, 512)}


async def test_after_a_rollback_a_refused_manifest_is_not_up_to_date(
    house, model, carried_out, started, served, tmp_path
):
    assert (await carried_out(house.publish(model, 2))).state is ChangeState.DONE
    house.apply(model, parts=parts(64 * GIB, 512), validation=unsigned(tmp_path))
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    assert change.state is ChangeState.REFUSED

    back = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert back.state is ChangeState.DONE, back
    assert started() == {(GIB, 8)}
    found = house.condition(model, ConditionType.UP_TO_DATE)
    assert (found.status, found.reason) == ("False", Reason.SIGNATURE_INVALID)
    assert found.message == f"revision 1 of the manifest serves, 2 is wanted: {change.message}"
