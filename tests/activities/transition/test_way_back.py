"""What a way back leaves in regions and their routers: the real activities on a real store."""

from datetime import UTC, datetime

import pytest
from temporalio.testing import ActivityEnvironment

from activities.state.desired import read_facts
from activities.state.replica_sets import wanted_deployments
from activities.state.served_generations import served_generations
from activities.state.wave_state import ModelWaveState, RouteShare
from activities.transition.activities import TransitionActivities
from ipnext.model.deployment.deployment import RouteTable
from ipnext.model.lifecycle.messages import ChangeState, WaveInput
from ipnext.model.planning.transition import FleetState, GenerationReplicas, Transition, TransitionState, Wave
from ipnext.store.records import TransitionRecord

M, LOST, LEFT = "ranker", "us-east", "eu-west"
PARTS = ("dense", "sparse")


def replicas(region: str, count: int) -> tuple[GenerationReplicas, ...]:
    return tuple(
        GenerationReplicas(model=M, part=part, generation=1, region=region, hardware="cpu", count=count)
        for part in PARTS
    )


def recorded(house, change, transition: Transition) -> None:
    """Its run is under way."""
    record = TransitionRecord(
        id=change.id,
        model=M,
        change_id=change.id,
        generation=1,
        transition=transition,
        created_at=datetime.now(UTC),
        revision=1,
    )
    with house.store.begin(M) as repository:
        repository.update_change(change.id, state=ChangeState.RUNNING)
        repository.save_transition(record)
        repository.advance_transition(change.id, state=TransitionState.RUNNING)


def performed(house, name: str, change, **more: object) -> None:
    wave = {"transition_id": change.id, "model": M, "generation": 1, "index": 0, "deadline_seconds": 5, "back": True}
    activity = getattr(TransitionActivities(house.store, house.infrastructure), name)
    ActivityEnvironment().run(activity, WaveInput.model_validate(wave | more))


@pytest.fixture
def left(house):
    """Release on the way back of a move from a lost region to the one that is left.

    `started`: its replicas there answer. Returns the generations that the router there is told of.
    """
    house.apply(M)
    change = house.publish(M, 1)
    moved = Transition.model_validate(
        {
            "from": FleetState(replicas=replicas(LOST, 1)),
            "to": FleetState(replicas=replicas(LEFT, 1)),
            "waves": (Wave(scale_up=replicas(LEFT, 1), scale_down=replicas(LOST, 0)),),
        }
    )
    state = ModelWaveState({((part, region, "cpu"), 1): 1 for part in PARTS for region in (LOST, LEFT)})
    with house.store.begin(M) as repository:
        facts = read_facts(repository, M, 1)
        sets = wanted_deployments(facts, state)
        for deployment in sets:
            repository.put_deployment(deployment)
        for region in (LOST, LEFT):
            served = served_generations(facts, region, sets) if region == LOST else ()
            shares = (RouteShare(to=LOST, generation=1, fraction=1.0),)
            repository.put_route(RouteTable(model=M, region=region, revision=1, shares=shares, served=served))
    recorded(house, change, moved)
    with house.store.begin() as repository:
        repository.add_drain(LOST, disaster=True)

    def release(*, started: bool) -> list[int]:
        for deployment in sets if started else ():
            house.infrastructure.apply(deployment)
        performed(house, "release_capacity", change)
        with house.store.read() as repository:
            [table] = [found for found in repository.routes(M) if found.region == LEFT]
        return [found.generation for found in table.served]

    return release


@pytest.mark.parametrize(("started", "known"), [(True, [1]), (False, [])], ids=["it answers", "it never started"])
def test_a_router_learns_of_what_a_way_back_only_spares_if_it_answers(left, started, known):
    assert left(started=started) == known


@pytest.mark.parametrize("by_waves", [True, False])
def test_a_way_back_ends_what_answers_nobody_before_it_tells_regions_what_its_wave_had_added(house, by_waves):
    """The run ended after it had written that down, and before it ended the replicas that hold the units."""
    house.apply(M)
    change = house.publish(M, 1)
    added = Transition.model_validate(
        {
            "from": FleetState(),
            "to": FleetState(replicas=replicas(LEFT, 1)),
            "waves": (Wave(scale_up=replicas(LEFT, 1)),),
        }
    )
    state = ModelWaveState({((part, region, "cpu"), 1): 1 for part in PARTS for region in (LOST, LEFT)})
    with house.store.begin(M) as repository:
        for deployment in wanted_deployments(read_facts(repository, M, 1), state):
            repository.put_deployment(deployment)
            if deployment.key.region == LOST:
                house.infrastructure.apply(deployment)
    recorded(house, change, added)
    before = len(house.infrastructure.calls("apply", "delete"))

    performed(house, "ensure_capacity", change, by_waves=by_waves)

    told = [moment.call for moment in house.infrastructure.calls("apply", "delete")[before:]]
    assert told == ["delete", "delete", "apply", "apply"]
