"""Replicas that an earlier change left without ever starting them: no users are sent there before they are ready."""

import pytest

from tests.activities.carried_out import CarriedOut
from tests.activities.planning.test_parts import BASE, apply, publish

M = "ranker"
EAST, WEST = "us-east", "eu-west"


@pytest.fixture
def rollout(house, kit):
    """Generation 2 is rolled out where users are; a revert has left replicas of generation 1 in the other region."""
    carried = CarriedOut(house)
    apply(house, kit, BASE, demand=[{"region": EAST, "qps": 350}])
    carried.carry_out(publish(house, kit, 1, BASE), 1)
    with house.store.begin(M) as unit:
        for found in unit.deployments(M):
            unit.put_deployment(found.model_copy(update={"key": found.key.model_copy(update={"region": WEST})}))

    def begin(*, starts: bool):
        with house.store.read() as unit:
            left = [found.key for found in unit.deployments(M) if found.key.region == WEST]
        for key in () if starts else left:
            house.infrastructure.stall(key)
        change = publish(house, kit, 2, BASE)
        assert carried.placed(change, 2).feasible
        assert carried.planned(change, 2).waves == 3
        return carried, change

    return begin


@pytest.mark.parametrize(("starts", "answering"), [(False, {EAST}), (True, {EAST, WEST})])
def test_a_region_without_demand_answers_once_what_was_left_there_is_ready(house, rollout, starts, answering):
    carried, change = rollout(starts=starts)
    assert not carried.walk(change, 2, [0])
    assert set(house.shares(M)) == answering


def test_a_rollout_does_not_wait_for_what_never_starts(house, rollout):
    carried, change = rollout(starts=False)
    assert not carried.walk(change, 2, range(3))
    assert house.shares(M) == {EAST: {2: 1.0}}
