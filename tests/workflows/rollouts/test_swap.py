"""Hot swaps on a supply that has no unit to spare.

Forward, back, and back from the middle where a snapshot does not load.
"""

import pytest

from activities.transition import wave_context as reaching
from activities.transition.activities import TransitionActivities
from ipnext.artifacts.checkpoints.checkpoint_import import import_checkpoint
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import RegionUnreachable
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import ConditionType
from tests.fleets import two_regions
from tests.genai.support.checkpoints import write_llama

pytestmark = pytest.mark.usefixtures("workers")

TIGHT = two_regions(8, 4)
COUNTS = {("dense", "us-east"): 4, ("dense", "eu-west"): 2}


@pytest.fixture
def begun(house, model, carried_out):
    """Publishes generation 1 of a model whose part serves by itself, in as many replicas as there is supply for."""

    async def begun(**rollout):
        house.apply_fleet(TIGHT)
        part = {"engine": "vllm", "hardware": [{"kind": "cpu", "units": 2, "qps": 100}]}
        pace = {"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 180, "refresh": "swap", **rollout}
        house.apply(model, rollout=pace, parts=[{"name": "dense", **part}], graph=None, task="generation")
        done = await carried_out(published(house, model, 1))
        assert done.state is ChangeState.DONE, done.message
        house.seen = len(house.infrastructure.history)

    return begun


def source(house, seed):
    """A checkpoint, which is what parts of such an engine hold."""
    imported = house.root / f"imported-{seed}"
    import_checkpoint(write_llama(house.root / f"llama-{seed}", seed=seed), imported)
    return ingest_directory(house.artifacts, imported)


def published(house, model, seed):
    return publish(house, model, seed, source(house, seed))


def publish(house, model, seed, dense):
    with house.store.begin() as repository:
        return repository.publish(model, {"dense": dense}, change_id=f"{model}-p{seed}")


def owned(house, model):
    """Each different set of counts that us-east's dense part had since, as generation -> processes."""
    found = []
    for moment in house.infrastructure.history[house.seen :]:
        for key, deployment in moment.deployments.items():
            if (key.model, key.part, key.region) == (model, "dense", "us-east") and dict(deployment.own) not in found[
                -1:
            ]:
                found.append(dict(deployment.own))
    return found


def told(house, model):
    """Of us-east at each moment since.

    Shares by generation, the generations of its processes, and those that its router knows.
    """
    key = DeploymentKey(model=model, part="dense", region="us-east", hardware="cpu")
    for moment in house.infrastructure.history[house.seen :]:
        table = moment.routes[model, "us-east"]
        shares = {share.generation: share.fraction for share in table.shares if share.to == "us-east"}
        yield shares, set(moment.deployments[key].own), {served.generation for served in table.served}


def check_units(house, model):
    """No replica set ever has more processes than at the start, ending ones among them, and none is started."""
    for moment in house.infrastructure.history[house.seen :]:
        counts = {(k.part, k.region): d.replicas for k, d in moment.deployments.items() if k.model == model}
        assert counts == COUNTS, moment.number
    state = house.infrastructure.observe("us-east")
    assert sorted(r.id for r in state.replicas if r.key.model == model and r.key.part == "dense") == [
        f"{model}.dense.cpu.{number}" for number in range(4)
    ]


async def test_a_rollout_goes_over_replica_by_replica_on_the_supply_that_serves(house, model, begun, carried_out):
    await begun()

    change = await carried_out(published(house, model, 2))

    assert change.state is ChangeState.DONE, change.message
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    check_units(house, model)
    assert owned(house, model) == [{1: 4}, {1: 3, 2: 1}, {1: 1, 2: 3}, {2: 4}]
    with house.store.read() as repository:
        told = [event.message for event in repository.events(model, limit=100) if event.kind == "Admitted"]
    assert told == ["generation 2: swaps 6 replicas; dips dense in eu-west by 50%, dense in us-east by 46% for seconds"]


async def test_a_rollback_swaps_back(house, model, begun, carried_out):
    await begun()
    await carried_out(published(house, model, 2))
    house.seen = len(house.infrastructure.history)

    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert change.state is ChangeState.DONE, change.message
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    check_units(house, model)
    assert owned(house, model) == [{2: 4}, {1: 2, 2: 2}, {1: 4}]


async def test_routers_know_the_generation_before_a_process_goes_over_to_it(house, model, begun, carried_out):
    """So that none whose generation has lost its last engine is without an answer."""
    await begun()

    await carried_out(published(house, model, 2))

    history = house.infrastructure.history[house.seen :]
    for region in ("us-east", "eu-west"):
        told = (m for m in history for key, d in m.deployments.items() if key.region == region and 2 in d.own)
        table = next(told).routes[model, region]
        assert {served.generation for served in table.served} == {1, 2}
        assert {share.generation for share in table.shares} == {1}


async def test_a_snapshot_that_does_not_load_is_swapped_back_wave_by_wave(house, model, begun, carried_out):
    await begun()
    broken = source(house, 77)
    house.infrastructure.fail_load(broken.manifest.digest)

    change = await carried_out(publish(house, model, 2, broken))

    assert change.state is ChangeState.ROLLED_BACK, change.message
    assert "broken on purpose" in change.message
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    check_units(house, model)
    assert owned(house, model)[-1] == {1: 4}


async def test_what_a_region_that_could_not_be_told_to_go_back_answers_is_what_the_next_publish_starts_from(
    house, model, begun, carried_out, quick_waits, monkeypatch
):
    """Generation 1 is written down and 2 answers.

    Its users neither move at once, nor are they sent to what the router knows nothing of.
    """
    await begun(canary=0.5)
    note = TransitionActivities._note

    def cutting(self, wave, condition, result, **more):
        note(self, wave, condition, result, **more)
        if condition is ConditionType.ROUTES_READY and house.shares(model)["us-east"] == {2: 1.0}:
            house.infrastructure.cut("us-east")
            patch.setattr(RegionUnreachable, "retryable", False)  # as where it was tried for long enough

    with monkeypatch.context() as patch:
        patch.setattr(TransitionActivities, "_note", cutting)
        assert (await carried_out(published(house, model, 2))).state is ChangeState.ROLLED_BACK
    assert (owned(house, model)[-1], house.shares(model)["us-east"]) == ({2: 4}, {2: 1.0})
    house.seen = len(house.infrastructure.history)
    house.infrastructure.mend("us-east")
    monkeypatch.setattr(reaching, "swaps", lambda *_: False)  # as where the next plan swaps nothing there

    change = await carried_out(published(house, model, 3))

    assert change.state is ChangeState.DONE, change.message
    assert owned(house, model) == [{2: 4}, {1: 2, 3: 2}, {3: 4}]
    sent = [shares for shares, _, _ in told(house, model)]
    assert [shares for shares, former in zip(sent, [{}, *sent], strict=False) if shares != former] == [
        {2: 1.0},
        {1: 0.5, 3: 0.5},
        {3: 1.0},
    ]
    left = [known for shares, held, known in told(house, model) if shares == {2: 1.0} and 2 not in held]
    assert left
    assert all(known == {1, 2, 3} for known in left)
    assert house.shares(model)["us-east"] == {3: 1.0}


async def test_a_gate_that_fails_in_the_middle_goes_back_through_every_wave(house, model, begun, carried_out):
    await begun()
    house.infrastructure.answer_with(model, 2, errors=0.5)

    change = await carried_out(published(house, model, 2))

    assert change.state is ChangeState.ROLLED_BACK, change.message
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    check_units(house, model)
    assert owned(house, model) == [{1: 4}, {1: 3, 2: 1}, {1: 4}]
