"""What a way back leaves as it is, for nothing else would answer or there is no room."""

from types import SimpleNamespace

import pytest

from activities.state.wave_state import ModelWaveState
from activities.transition.revert import (
    answers_at_all,
    choose_told,
    find_needed,
    find_unfreed,
    find_unrestored,
    heard,
    none_more,
    not_as_before,
    still_answered,
    waiting,
)
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.planning.transition import FleetState, GenerationReplicas, Transition

M = "ranker"
SLOT = ("p", "eu", "cpu")


def key(region: str) -> DeploymentKey:
    return DeploymentKey(model=M, part="p", region=region, hardware="cpu")


def deployed(region: str, own: dict[int, int]) -> Deployment:
    holds = tuple(AssignedSnapshot(snapshot=n, digest=f"{n:064x}", uri=f"s3://{n}", generations=(n,)) for n in own)
    return Deployment(
        key=key(region), replicas=sum(own.values()), engine="torch", units=1, qps=10, holds=holds, own=own
    )


def together(count: int, *generations: int) -> Deployment:
    return deployed("eu", dict.fromkeys(generations, 1)).model_copy(update={"replicas": count, "own": {}})


def table(region: str, to: str, generation: int) -> RouteTable:
    shares = (RouteShare(to=to, generation=generation, fraction=1.0),)
    return RouteTable(model=M, region=region, revision=1, shares=shares, served=())


def test_a_region_that_is_still_sent_a_generation_which_the_state_does_not_hold_is_not_undone_further():
    state = ModelWaveState({(SLOT, 1): 1}, apart=True)

    assert find_unfreed(state, [], [table("us", "eu", 2)], [SLOT]) == {"eu"}
    assert find_unfreed(state, [], [table("us", "eu", 1)], [SLOT]) == frozenset()


@pytest.mark.parametrize(
    ("apart", "stored", "full"),
    [
        (True, deployed("eu", {1: 1, 2: 1}), {"eu"}),
        (True, deployed("eu", {1: 1}), set()),
        (False, together(2, 1), {"eu"}),
        (False, together(1, 1, 2), set()),
    ],
)
def test_there_is_no_room_where_more_runs_than_the_state_has(apart, stored, full):
    state = ModelWaveState({(SLOT, 1): 1}, apart=apart)

    assert find_unfreed(state, [stored], [], [SLOT]) == full
    assert find_unfreed(state, [stored], [], []) == frozenset()


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (deployed("eu", {1: 1}), {1: 1}),
        (deployed("eu", {1: 2}), {1: 1, 2: 1}),
        (deployed("eu", {2: 1, 3: 1}), {1: 1, 2: 1}),
    ],
)
def test_letting_go_adds_nothing(wanted, kept):
    stored = deployed("eu", {1: 1, 2: 1})

    assert [found.own for found in none_more([wanted, deployed("us", {1: 1})], {stored.key: stored})] == [kept]


@pytest.mark.parametrize(
    ("ready", "now", "stay"),
    [((1,), 2, set()), ((2,), 2, {"us"}), ((2,), 1, set())],
)
def test_users_stay_where_they_are_until_what_they_go_back_to_is_ready(ready, now, stay):
    replica = Replica(id="r", key=key("eu"), phase=ReplicaPhase.RUNNING, ready=ready)
    states = {"eu": RegionState(region="eu", gateway_url="http://gateway", replicas=(replica,))}
    generations = {1: SimpleNamespace(parts=("p",))}
    facts = SimpleNamespace(model=M, tables={"us": table("us", "eu", now)}, generations=generations)
    shares = {"us": table("us", "eu", 1).shares, "de": ()}

    assert waiting(facts, shares, states) == stay
    assert waiting(facts, shares, {}) == frozenset()


@pytest.mark.parametrize(
    ("wanted", "needed"),
    [
        ({1: 2}, {("eu", 1)}),
        ({1: 1}, set()),
        ({3: 1}, {("eu", 1)}),
    ],
)
def test_users_keep_what_answers_them_where_what_shall_answer_them_did_not_come_back(wanted, needed):
    stored = deployed("eu", {1: 1, 2: 1})
    shares = {"us": table("us", "eu", 1).shares, "eu": table("eu", "us", 1).shares}

    assert find_unrestored([deployed("eu", wanted)], {stored.key: stored}, shares) == needed


def test_what_is_not_there_at_all_did_not_come_back():
    assert find_unrestored([deployed("eu", {1: 1})], {}, {"us": table("us", "eu", 1).shares}) == {("eu", 1)}


def test_routers_learn_of_what_is_only_spared_if_it_answers():
    target, answering, silent, other = (deployed(region, {1: 1}) for region in ("eu", "us", "asia", "africa"))

    found = heard([target, answering, silent, other], [target, answering, silent], [target, answering])

    assert found == (target, answering, other)


@pytest.mark.parametrize(
    ("lost", "to", "said"),
    [
        ({"us"}, 2, "generation 2 goes on answering users of eu: nothing from before it is left without us"),
        ({"us"}, 1, ""),
        (set(), 2, ""),
    ],
)
def test_users_who_are_not_answered_as_before_are_named_with_what_is_lost(lost, to, said):
    before = ModelWaveState({(SLOT, 1): 1}, {"eu": (RouteShare(to="us", generation=1, fraction=1.0),)})
    shares = {"eu": (RouteShare(to="eu", generation=to, fraction=1.0), RouteShare(to="eu", generation=3, fraction=0.0))}

    assert not_as_before(SimpleNamespace(lost=frozenset(lost)), before, shares) == said


@pytest.mark.parametrize(("region", "ready", "answers"), [("eu", (2,), True), ("eu", (), False), ("us", (2,), False)])
def test_a_replica_set_answers_where_a_generation_of_it_is_ready_and_its_region_is_seen(region, ready, answers):
    replica = Replica(id="r", key=key("eu"), phase=ReplicaPhase.RUNNING, ready=ready)
    states = {"eu": RegionState(region="eu", gateway_url="http://gateway", replicas=(replica,))}
    facts = SimpleNamespace(model=M, generations={2: SimpleNamespace(parts=("p",))})

    assert answers_at_all(facts, deployed(region, {2: 1}), states) is answers


@pytest.mark.parametrize(("parts", "stays"), [(("p", "q"), True), (("p",), False)])
def test_users_whom_a_transition_does_not_know_keep_a_generation_while_all_of_its_parts_are_there(parts, stays):
    """Their region was lost when the transition began: it may remove a part of what their gateway names."""

    def held(names):
        row = {"model": M, "generation": 1, "region": "eu", "hardware": "cpu", "count": 1}
        return FleetState(replicas=tuple(GenerationReplicas(part=name, **row) for name in names))

    transition = Transition.model_validate({"from": held(("p", "q")), "to": held(parts), "waves": []})
    facts = SimpleNamespace(
        model=M,
        tables={"us": table("us", "eu", 1)},
        lost=frozenset({"us"}),
        generations={1: SimpleNamespace(parts=("p", "q"))},
    )
    state = ModelWaveState({((part, "eu", "cpu"), 1): 1 for part in parts})

    found = still_answered(facts, transition, state, {"us": ()})

    assert found == {"us": facts.tables["us"].shares if stays else ()}


@pytest.mark.parametrize(
    ("final", "told"),
    [(None, ["eu", "us"]), (ModelWaveState({(SLOT, 1): 1}), ["eu"]), (ModelWaveState(), [])],
)
def test_a_step_begins_with_the_replica_sets_that_its_end_has_but_in_lost_regions(final, told):
    wanted = [deployed(region, {1: 1}) for region in ("ap", "eu", "us")]

    found = choose_told(SimpleNamespace(lost=frozenset({"ap"})), wanted, final)

    assert [one.key.region for one in found] == told


@pytest.mark.parametrize(
    ("before", "first", "needed"),
    [
        ([("eu", 1.0)], [("us", 1.0)], set()),
        ([("us", 1.0)], [("eu", 1.0)], {"us"}),
        ([("us", 0.5), ("ap", 0.5)], [("us", 1.0)], {"us", "ap"}),
        ([("us", 1.0)], [("us", 1.0)], set()),
    ],
)
def test_a_revert_counts_on_the_regions_that_users_of_others_return_to(before, first, needed):
    def shares(found):
        return [{"to": to, "generation": 1, "fraction": fraction} for to, fraction in found]

    rows = [{"model": M, "from": "eu", **one} for one in shares(before)]
    route = [{"model": M, "from": "eu", "shares": shares(first)}]
    transition = Transition.model_validate(
        {"from": {"replicas": [], "traffic": rows}, "to": FleetState(), "waves": [{"route": route, "gate": "canary"}]}
    )

    assert find_needed(transition, M, 1) == needed
    assert find_needed(transition, M, 0) == frozenset()
