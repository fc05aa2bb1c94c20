"""A revert while a region does not answer: the users of the others do not wait for it."""

import pytest

from activities.transition.revert import find_changed, find_needed
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.store.repository import Repository
from tests.activities.planning.test_parts import BASE, publish, serve

M = "ranker"
EAST, WEST = "us-east", "eu-west"


def back(change, index=0):
    return WaveInput(
        transition_id=change.id,
        model=M,
        generation=2,
        index=index,
        deadline_seconds=20,
        back=True,
        reason=Reason.GATE_FAILED,
        message="too many errors",
    )


@pytest.fixture
def rollout(house, kit):
    """Execute the first waves of generation 2, then let the west answer no call any more."""

    def begin(waves=1):
        carried = serve(house, kit, BASE)
        change = publish(house, kit, 2, BASE)
        assert carried.placed(change, 2).feasible
        assert carried.planned(change, 2).waves == 3
        assert not carried.walk(change, 2, range(waves))
        house.infrastructure.cut(WEST)
        return carried, change

    return begin


def generations(house, region):
    return set(house.shares(M)[region])


def test_a_bad_canary_ends_where_the_regions_answer(house, rollout):
    carried, change = rollout()
    assert generations(house, EAST) == generations(house, WEST) == {1, 2}

    first = carried.env.run(carried.transition.ensure_capacity, back(change))
    assert (first.ok, first.again_seconds) == (True, 0)
    assert WEST in carried.step("shift_traffic", back(change))

    assert (generations(house, EAST), generations(house, WEST)) == ({1}, {1, 2})
    assert WEST in carried.step("release_capacity", back(change))


def test_a_region_that_has_lost_replicas_is_waited_for(house, rollout):
    carried, change = rollout(waves=3)
    first = carried.env.run(carried.transition.ensure_capacity, back(change, index=2))
    assert (first.ok, first.again_seconds > 0) == (False, True)
    house.infrastructure.mend(WEST)
    assert not carried.walk(change, 2, [2], back=True, reason=Reason.GATE_FAILED, message="told")
    assert generations(house, EAST) == generations(house, WEST) == {1}


@pytest.fixture
def only_in_the_east(monkeypatch):
    """Let transitions to generation 2 change nothing in the west."""
    read = Repository.transition

    def narrow(wave):
        up = tuple(found for found in wave.scale_up if found.region == EAST)
        down = tuple(found for found in wave.scale_down if found.region == EAST)
        route = tuple(found for found in wave.route if found.origin == EAST)
        return wave.model_copy(update={"scale_up": up, "scale_down": down, "route": route})

    def narrowed(repository, transition_id):
        record = read(repository, transition_id)
        waves = tuple(narrow(wave) for wave in record.transition.waves)
        transition = record.transition.model_copy(update={"waves": waves})
        return record.model_copy(update={"transition": transition}) if record.generation == 2 else record

    monkeypatch.setattr(Repository, "transition", narrowed)


@pytest.mark.parametrize("waves", [1, 3])
@pytest.mark.usefixtures("only_in_the_east")
def test_a_region_in_which_nothing_changed_is_no_part_of_the_revert(house, rollout, waves):
    carried, change = rollout(waves)
    assert (2 in generations(house, EAST), generations(house, WEST)) == (True, {1})

    assert not carried.walk(change, 2, [waves - 1], back=True, reason=Reason.GATE_FAILED, message="told")

    assert generations(house, EAST) == generations(house, WEST) == {1}
    with house.store.read() as unit:
        assert unit.transition(change.id).state is TransitionState.ROLLED_BACK


@pytest.mark.parametrize(("origin", "needed"), [(WEST, set()), (EAST, {WEST})])
def test_a_region_that_gets_users_of_another_one_back_is_waited_for(origin, needed):
    def share(to):
        return {"model": M, "origin": origin, "to": to, "generation": 1, "fraction": 1.0}

    before = {"traffic": [share(WEST)], "replicas": []}
    moved = {"model": M, "origin": origin, "shares": [{"to": EAST, "generation": 1, "fraction": 1.0}]}
    document = {"from": before, "to": {"traffic": [share(EAST)], "replicas": []}, "waves": [{"route": [moved]}, {}]}
    transition = Transition.model_validate(document)
    assert find_needed(transition, M, 1) == needed
    assert find_changed(transition, M, 1) == {origin}
