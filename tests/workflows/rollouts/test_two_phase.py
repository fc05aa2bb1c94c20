"""The two phases of a flip, read from all that the infrastructure was told: loaded everywhere, then weight.

Weightless, then unloaded.
"""

import pytest

from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import Reason

pytestmark = pytest.mark.usefixtures("workers")

PARTS = ("sparse", "dense")
REGIONS = ("us-east", "eu-west")


def key(model, part, region):
    return DeploymentKey(model=model, part=part, region=region, hardware="cpu")


def weight(moment, model, region, generation):
    """The share of all gateways' traffic that goes to a generation in a region."""
    return sum(
        share.fraction
        for table in moment.routes.values()
        for share in table.shares
        if (table.model, share.to, share.generation) == (model, region, generation)
    )


def served(moment, model, region):
    """Generations that the region's router may answer with."""
    table = moment.routes.get((model, region))
    return {one.generation for one in table.served} if table else set()


def ready(moment, model, region, generation):
    """For each part, how many replicas have the generation loaded."""
    return {part: moment.ready.get((key(model, part, region), generation), 0) for part in PARTS}


def held(moment, model, region, generation):
    """Whether any replica set of the region is told to hold the generation."""
    return any(
        generation in deployment.generations
        for name, deployment in moment.deployments.items()
        if (name.model, name.region) == (model, region)
    )


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("part", PARTS)
async def test_no_weight_anywhere_while_one_part_of_one_region_is_not_loaded(
    house, model, carried_out, quick_waits, part, region
):
    house.apply(model, rollout={"canary": 1.0, "maxStep": 1.0, "deadlineSeconds": 120})
    await carried_out(house.publish(model, 1))
    house.infrastructure.stall(key(model, part, region))

    change = await carried_out(house.publish(model, 2))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.DEADLINE_EXCEEDED)
    loaded = [m for m in house.infrastructure.history for other in REGIONS if all(ready(m, model, other, 2).values())]
    assert loaded, "the other region was ready and had to wait"
    for moment in house.infrastructure.history:
        for other in REGIONS:
            assert weight(moment, model, other, 2) == 0, (moment.number, moment.call, other)


@pytest.mark.parametrize("rollout", [{"canary": 0.1, "maxStep": 0.5}, {"canary": 1.0, "maxStep": 1.0}])
async def test_weight_goes_only_where_all_parts_are_loaded_and_what_is_unloaded_has_no_weight_left(
    house, model, carried_out, rollout
):
    house.apply(model, rollout={**rollout, "keepWarm": 0, "deadlineSeconds": 180})
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2))

    history = house.infrastructure.history
    assert weight(history[-1], model, "us-east", 2) > 0
    assert not held(history[-1], model, "us-east", 1)
    for moment in history:
        for region in REGIONS:
            for generation in (1, 2):
                where = (moment.number, moment.call, region, generation)
                if weight(moment, model, region, generation):
                    assert generation in served(moment, model, region), where
                    assert all(ready(moment, model, region, generation).values()), where
                if not held(moment, model, region, generation):
                    assert generation not in served(moment, model, region), where
