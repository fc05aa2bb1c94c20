"""What a way back leaves in regions and their routers: the real activities on a real store."""

from datetime import UTC, datetime

import pytest
from temporalio.testing import ActivityEnvironment

from activities.state.desired import read_facts
from activities.state.replica_sets import wanted_deployments
from activities.state.routes.served_generations import served_generations
from activities.state.wave_state import ModelWaveState, RouteShare
from activities.transition.activities import TransitionActivities
from ipnext.errors import RegionUnreachable
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import FleetState, GenerationReplicas, Transition, TransitionState, Wave
from ipnext.store.records import TransitionRecord
from tests.activities.planning.test_parts import BASE, publish, serve

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


@pytest.fixture
def added(house):
    """A wave adds replicas of one part in a region, and the transition knows nothing of unused ones of the other part.

    Its run has written the added ones down, unless it has not begun, and told no region of them. The unused ones run in
    region `unused`. The wave has this `index`; those before it change nothing.
    """

    def store(unused, *, begun=True, index=0):
        house.apply(M)
        change = house.publish(M, 1)
        [dense] = [row for row in replicas(LEFT, 1) if row.part == "dense"]
        waves = (*(Wave() for _ in range(index)), Wave(scale_up=(dense,)))
        moved = Transition.model_validate({"from": FleetState(), "to": FleetState(replicas=(dense,)), "waves": waves})
        state = ModelWaveState({(("dense", LEFT, "cpu"), 1): 1})
        stray = ModelWaveState({(("sparse", unused, "cpu"), 1): 1})
        with house.store.begin(M) as repository:
            facts = read_facts(repository, M, 1)
            for deployment in wanted_deployments(facts, state) if begun else ():
                repository.put_deployment(deployment)
            for deployment in wanted_deployments(facts, stray):
                repository.put_deployment(deployment)
                house.infrastructure.apply(deployment)
        recorded(house, change, moved)
        return change

    return store


def told(house, since):
    return [moment.call for moment in house.infrastructure.calls("apply", "delete")[since:]]


@pytest.mark.parametrize("by_waves", [True, False])
def test_a_way_back_ends_what_answers_nobody_and_starts_nothing_that_its_wave_had_added(house, added, by_waves):
    change = added(LOST)
    before = len(house.infrastructure.calls("apply", "delete"))

    performed(house, "ensure_capacity", change, by_waves=by_waves)

    assert told(house, before) == ["delete"]
    performed(house, "release_capacity", change, by_waves=by_waves)
    with house.store.read() as repository:
        assert repository.deployments(M) == ()


@pytest.fixture
def comes_back(house, monkeypatch):
    """Cut the region off; it comes back after so many looks, at the worst between a look and a call."""

    def after(silent):
        house.infrastructure.cut(LEFT)
        looks, observe = [], house.infrastructure.observe

        def look(region, models=None):
            try:
                return observe(region, models)
            except RegionUnreachable:
                looks.append(region)
                if len(looks) == silent:
                    house.infrastructure.mend(LEFT)
                raise

        monkeypatch.setattr(house.infrastructure, "observe", look)

    return after


@pytest.mark.parametrize("silent", [1, 2, 3])
def test_a_region_that_comes_back_ends_what_answers_nobody_before_it_starts_anything(house, added, comes_back, silent):
    change = added(LEFT)
    before = len(house.infrastructure.calls("apply", "delete"))
    comes_back(silent)

    performed(house, "ensure_capacity", change, back=False)

    assert told(house, before) == ["delete", "apply"]


def parts_stored(house):
    with house.store.read() as repository:
        return [found.key.part for found in repository.deployments(M)]


@pytest.mark.parametrize(("index", "back"), [(0, False), (0, True), (1, False)])
def test_a_wave_stores_no_replicas_beside_what_a_silent_region_has_not_ended(house, added, index, back):
    """Both may be more than the supply, and a region that returns after the run gets all that is stored."""
    change = added(LEFT, begun=False, index=index)
    house.infrastructure.cut(LEFT)

    performed(house, "ensure_capacity", change, index=index, back=back, deadline_seconds=0)

    assert parts_stored(house) == ["sparse"]


@pytest.mark.parametrize("silent", [0, 1, 2, 3])
def test_a_wave_stores_its_replicas_once_the_region_has_ended_what_answers_nobody(house, added, comes_back, silent):
    change = added(LEFT, begun=False)
    before = len(house.infrastructure.calls("apply", "delete"))
    if silent:
        comes_back(silent)

    performed(house, "ensure_capacity", change, back=False)

    assert (told(house, before), parts_stored(house)) == (["delete", "apply"], ["dense"])


def test_a_wave_starts_nothing_beside_what_a_region_failed_to_end(house, added, monkeypatch):
    change = added(LEFT)
    before, delete, failed = len(house.infrastructure.calls("apply", "delete")), house.infrastructure.delete, []

    def fail_twice(key):
        if len(failed) < 2:
            failed.append(key)
            msg = f"region {key.region!r} does not answer"
            raise RegionUnreachable(msg)
        delete(key)

    monkeypatch.setattr(house.infrastructure, "delete", fail_twice)
    performed(house, "ensure_capacity", change, back=False)

    assert told(house, before) == ["delete", "apply"]


@pytest.mark.parametrize("silent", [1, 2])
def test_a_set_that_shrinks_in_a_region_that_comes_back_shrinks_in_the_store_as_well(house, added, comes_back, silent):
    change = added(LOST)
    with house.store.begin(M) as repository:
        [dense] = [found for found in repository.deployments(M) if found.key.region == LEFT]
        larger = dense.model_copy(update={"replicas": 2, "own": dict.fromkeys(dense.own, 2)})
        repository.put_deployment(larger)
        house.infrastructure.apply(larger)
    comes_back(silent)

    performed(house, "ensure_capacity", change, back=False)

    with house.store.read() as repository:
        assert [found.replicas for found in repository.deployments(M) if found.key.region == LEFT] == [1]
    assert house.infrastructure.deployment(dense.key).replicas == 1


@pytest.mark.parametrize(("ends", "promised"), [(("dense", "sparse"), []), (("sparse",), []), ((), [(LEFT, 1)])])
def test_a_lost_region_is_promised_no_generation_of_which_a_wave_ends_a_part(house, ends, promised):
    """A wave whose transition knows nothing of these users. They get the table once their region is restored."""
    house.apply(M)
    change = house.publish(M, 1)
    gone = tuple(row.model_copy(update={"count": 0}) for row in replicas(LEFT, 1) if row.part in ends)
    moved = Transition.model_validate(
        {
            "from": FleetState(replicas=(*replicas(LOST, 1), *replicas(LEFT, 1))),
            "to": FleetState(replicas=replicas(LEFT, 1)),
            "waves": (Wave(scale_down=gone), Wave(scale_up=replicas(LEFT, 1), scale_down=replicas(LOST, 0))),
        }
    )
    state = ModelWaveState({((part, region, "cpu"), 1): 1 for part in PARTS for region in (LOST, LEFT)})
    with house.store.begin(M) as repository:
        facts = read_facts(repository, M, 1)
        sets = wanted_deployments(facts, state)
        for deployment in sets:
            repository.put_deployment(deployment)
            house.infrastructure.apply(deployment)
        for region, to in ((LOST, LEFT), (LEFT, None)):
            served = served_generations(facts, region, sets)
            shares = (RouteShare(to=to, generation=1, fraction=1.0),) if to else ()
            repository.put_route(RouteTable(model=M, region=region, revision=1, shares=shares, served=served))
    recorded(house, change, moved)
    with house.store.begin() as repository:
        repository.add_drain(LOST, disaster=True)

    performed(house, "release_capacity", change, back=False)

    with house.store.read() as repository:
        [table] = [found for found in repository.routes(M) if found.region == LOST]
        left = {found.key.part for found in repository.deployments(M) if found.key.region == LEFT}
    assert [(share.to, share.generation) for share in table.shares] == promised
    assert left == set(PARTS).difference(ends)


def test_a_revert_before_the_first_step_is_under_way(house, kit):
    """It adds and releases replicas: the reconciler leaves the model alone, and a takeover completes it."""
    carried = serve(house, kit, BASE)
    change = publish(house, kit, 2, BASE)
    assert carried.placed(change, 2).feasible
    assert carried.planned(change, 2).waves == 3

    performed(house, "ensure_capacity", change, generation=2, reason=Reason.SUPERSEDED)

    with house.store.read() as unit:
        assert unit.transition(change.id).state is TransitionState.RUNNING
