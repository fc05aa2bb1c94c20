"""Rollbacks past a manifest with other parts, on the real server: a generation keeps the parts it served with."""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import ConditionType, Reason
from tests.workflows.regions.drains import EUROPE, replans_ended

pytestmark = pytest.mark.usefixtures("workers")

BASE = ("sparse", "dense")
MORE = (*BASE, "extra")


@pytest.fixture
def apply(house, kit, model):
    """A model of these parts."""

    def call(names, **rollout):
        part = {"engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
        graph = {"nodes": list(kit.GRAPH["nodes"]), "outputs": dict(kit.GRAPH["outputs"])}
        if "extra" in names:
            graph["nodes"].append({"name": "extra", "part": "extra", "inputs": {"x": "sparse.embeddings"}})
            graph["outputs"]["more"] = "extra.score"
        house.apply(
            model,
            parts=[{"name": name, **part} for name in names],
            graph=graph,
            validation={"skip": {"interface": "its outputs change with its parts"}},
            rollout={"canary": 0.1, "maxStep": 1.0, "deadlineSeconds": 180, **rollout},
        )

    return call


@pytest.fixture
def publish(house, kit, model):
    def call(seed, names):
        more = {"extra": house.source(kit.DENSE, kit.weights(seed + 2000))} if "extra" in names else {}
        return house.publish(model, seed, **more)

    return call


def parts_running(house, model, region):
    with house.store.read() as unit:
        return {found.key.part for found in unit.deployments(model) if found.key.region == region and found.replicas}


def waits_for_approval(house, model):
    with house.store.read() as unit:
        return any(found.reason is Reason.AWAITING_APPROVAL for found in unit.conditions(model))


def sent(house, model):
    """The generations that answer users of us-east, which no test loses."""
    return set(house.shares(model)["us-east"])


async def test_a_model_goes_back_to_a_generation_with_a_part_that_its_manifest_lost(
    house, model, apply, publish, carried_out
):
    apply(MORE)
    await carried_out(publish(1, MORE))
    apply(BASE)
    applied = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    assert applied.state is ChangeState.DONE, applied.message
    assert "generation 1 keeps its part extra: it leaves with the next publish" in applied.message
    assert parts_running(house, model, EUROPE) == set(MORE)
    published = await carried_out(publish(2, BASE))
    assert published.state is ChangeState.DONE, published.message
    assert parts_running(house, model, EUROPE) == set(BASE)

    back = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert back.state is ChangeState.DONE, back.message
    assert (sent(house, model), parts_running(house, model, EUROPE)) == ({1}, set(MORE))
    assert house.condition(model, ConditionType.READY).status == "True"


async def test_a_rollback_after_a_loss_waits_for_no_part_of_the_publish_that_it_stops(
    house, model, apply, publish, carried_out, submit, ended, until, drains
):
    apply(BASE)
    await carried_out(publish(1, BASE))
    apply(MORE, approval="canary")
    change = publish(2, MORE)
    await submit(change)
    await until(lambda: waits_for_approval(house, model))
    house.infrastructure.cut(EUROPE)
    await drains.ask(disaster=True)

    back = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert (await ended(change)).state is ChangeState.ROLLED_BACK
    assert back.state is ChangeState.DONE, back.message
    await drains.reaches(DrainState.DRAINED)
    await replans_ended(house, until)
    assert sent(house, model) == {1}
    assert parts_running(house, model, "us-east") == set(BASE)
