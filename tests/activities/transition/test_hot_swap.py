"""What a swap means for the states of a transition, its way back, its price and what it leaves as it is."""

from datetime import UTC, datetime

import pytest

from activities.state.wave_state import fits_at_once, peak, state_at, state_undone, swaps, wave_target
from activities.transition import traffic_shift as routing
from activities.transition.admission import price_of
from activities.transition.hot_swap import Announcement, find_restarts, leave_what_is_sent, not_gone_back, while_swapped
from activities.transition.revert import find_unfreed, none_more
from ipnext.errors import InvalidInput
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import (
    FleetState,
    GenerationReplicas,
    GenerationShare,
    RouteChange,
    Share,
    Swap,
    Transition,
    Wave,
)
from ipnext.model.registry.checkpoint import Checkpoint
from ipnext.model.registry.registry import ArtifactFile, Generation, Signature, SnapshotManifest
from tests.activities.transition.test_traffic_shift import NoStore, Regions, facts_of, served, share

M = "chat"
SLOT = ("llm", "us", "gpu")


def row(generation, count):
    return GenerationReplicas(model=M, part="llm", generation=generation, region="us", hardware="gpu", count=count)


def ends(generation, count):
    share = {"model": M, "from": "us", "to": "us", "generation": generation, "fraction": 1.0}
    return FleetState(replicas=(row(generation, count),), traffic=(GenerationShare.model_validate(share),))


def moved(**fractions):
    shares = tuple(Share(to="us", generation=int(g[1:]), fraction=f) for g, f in fractions.items())
    return RouteChange.model_validate({"model": M, "from": "us", "shares": shares})


@pytest.fixture
def transition():
    """Two replicas go over one by one; then a third one starts."""
    waves = (
        Wave(scale_up=(row(1, 1), row(2, 1)), route=(moved(g1=0.5, g2=0.5),), gate="canary"),
        Wave(scale_up=(row(1, 0), row(2, 2)), route=(moved(g2=1.0),)),
        Wave(scale_up=(row(2, 3),), gate="final"),
    )
    swapped = (Swap(model=M, part="llm", region="us", replicas=2, fraction=0.5),)
    return Transition.model_validate(
        {"from": ends(1, 2), "to": ends(2, 3), "waves": waves, "swaps": swapped, "refresh": "swap"}
    )


def told(state):
    return {g: n for (_, g), n in state.counts.items()}, {s.generation: s.fraction for s in state.shares.get("us", ())}


def test_a_wave_that_swaps_has_as_many_processes_as_before(transition):
    up, routed, released = (state_at(transition, M, 0, phase) for phase in ("scaled_up", "routed", "released"))

    assert told(up) == ({1: 1, 2: 1}, {1: 1.0})
    assert told(routed) == told(released) == ({1: 1, 2: 1}, {1: 0.5, 2: 0.5})
    assert up.replicas(SLOT) == 2
    assert [swaps(transition, M, index) for index in range(3)] == [True, True, False]


def test_a_wave_waits_for_its_own_generation_and_not_for_the_one_that_it_leaves(transition):
    """The former one may be broken, and be left for that reason; what a wave adds of any generation it waits for."""
    waited = [{g: n for (_, g), n in wave_target(transition, M, index, 2).counts.items()} for index in range(3)]
    assert waited == [{2: 1}, {2: 2}, {2: 3}]
    assert {g for _, g in wave_target(transition, M, 1, 3).counts} == {2}


def test_it_is_undone_by_swapping_back_before_the_traffic(transition):
    up, routed, released = (state_undone(transition, M, 1, phase) for phase in ("scaled_up", "routed", "released"))

    assert told(up) == ({1: 1, 2: 1}, {2: 1.0})
    assert told(routed) == told(released) == ({1: 1, 2: 1}, {1: 0.5, 2: 0.5})
    assert told(state_undone(transition, M, 0, "scaled_up")) == ({1: 2}, {1: 0.5, 2: 0.5})
    assert told(state_undone(transition, M, 0, "released")) == ({1: 2}, {1: 1.0})


def test_what_started_in_the_same_transition_ends_on_the_way_back(transition):
    up, released = (state_undone(transition, M, 2, phase) for phase in ("scaled_up", "released"))

    assert (told(up)[0], told(released)[0]) == ({2: 3}, {2: 2})


def test_no_unit_more_is_kept_for_a_way_back_that_goes_by_waves(transition):
    assert peak(transition, M) == {SLOT: 3}
    assert not fits_at_once(transition, M, {("llm", "gpu"): 1.0}, {("us", "gpu"): 100.0})


def test_the_price_is_told(transition):
    assert price_of(transition, {}) == "swaps 2 replicas; dips llm in us by 50% for seconds"
    (swap,) = transition.swaps
    single = swap.model_copy(update={"replicas": 1, "fraction": 0.0})
    assert price_of(transition.model_copy(update={"swaps": (single,)}), {}) == "swaps 1 replica"


def test_engines_that_cannot_go_over_are_told_before_any_is_asked(transition):
    spec = parse_manifest(manifest("vllm", "swap")).spec
    same = {("llm", 1): snapshot("a"), ("llm", 2): snapshot("a", "config.json")}
    wider, talking = same | {("llm", 2): snapshot("b")}, same | {("llm", 2): snapshot("a", "chat_template.jinja")}
    plain, styled = (generation(1), generation(2)), (generation(1), generation(2, style="llm"))

    assert find_restarts(spec, plain, same, transition) == {}
    assert find_restarts(spec, styled, same, transition) == {"llm": "adapters stand in it"}
    told = find_restarts(spec, plain, talking, transition)
    assert told == {"llm": "an engine reads chat_template.jinja as it starts and never again, and it is another one"}
    anew = find_restarts(spec, plain, wider, transition)
    assert price_of(transition, anew) == (
        "can't swap 2 replicas of llm, since its tensors get other names, dtypes or shapes: "
        "ends them and starts others in "
        "their place; dips llm in us by 50% until these are ready (rollout.refresh: replace starts them first)"
    )


def test_a_pair_that_hands_over_is_started_anew(transition):
    document = manifest("vllm", "swap")
    (part,) = document["spec"]["parts"]
    document["spec"]["parts"] = [
        part | {"name": name, "settings": {"kvTransfer": {"connector": "nixl", "role": role}}}
        for name, role in (("llm", "prefill"), ("writer", "decode"))
    ]
    found = find_restarts(parse_manifest(document).spec, (), {}, transition)
    assert found == {"llm": "prefill and decode have to hand over between the same weights"}


def snapshot(form, *more):
    facts = Checkpoint(architecture="LlamaForCausalLM", dtype="BF16", parameters=1, tensors=form * 64)
    files = tuple(ArtifactFile(path=path, sha256="c" * 64, size_bytes=1) for path in more)
    signature = Signature(inputs=(), outputs=())
    return SnapshotManifest(engine="vllm", signature=signature, files=files, checkpoint=facts)


def generation(number, **adapters):
    snapshots = {"llm": number} | dict.fromkeys(adapters, 1)
    return Generation(model=M, number=number, snapshots=snapshots, adapters=adapters, created_at=datetime.now(UTC))


def deployed(own):
    key = DeploymentKey(model=M, part="llm", region="us", hardware="gpu")
    holds = tuple(AssignedSnapshot(snapshot=n, digest=f"d{n}", uri=f"u{n}", generations=(n,)) for n in own)
    return Deployment(
        key=key, replicas=sum(own.values()), engine="vllm", units=1, qps=1, holds=holds, own=own, swap=True
    )


def sending(generation):
    shares = (RouteShare(to="us", generation=generation, fraction=1.0),)
    return RouteTable(model=M, region="us", revision=1, shares=shares, served=())


def test_a_swap_back_needs_no_room_but_what_runs_and_may_be_sent_what_goes_back(transition):
    state, meanwhile = state_undone(transition, M, 0, "scaled_up"), while_swapped(transition, M, 0)

    assert meanwhile == {("us", 1), ("us", 2)}
    assert find_unfreed(state, [deployed({1: 1, 2: 1})], [sending(2)], [SLOT], meanwhile=meanwhile) == frozenset()
    assert find_unfreed(state, [deployed({1: 1, 2: 2})], [], [SLOT], meanwhile=meanwhile) == {"us"}, (
        "one is still too many"
    )
    assert find_unfreed(state, [deployed({1: 1, 2: 1})], [sending(3)], [SLOT], meanwhile=meanwhile) == {"us"}


def test_processes_leave_what_users_are_sent_to_where_it_is_not_what_they_are_told():
    """As where a way back could not tell a region: it is written down to hold what it never went back to."""
    elsewhere = sending(2).model_copy(update={"shares": (RouteShare(to="eu", generation=2, fraction=1.0),)})
    nobody = sending(2).model_copy(update={"shares": (RouteShare(to="us", generation=2, fraction=0.0),)})

    assert leave_what_is_sent([sending(2)], [deployed({1: 2})])
    assert not leave_what_is_sent([sending(2)], [deployed({1: 1, 2: 1})])
    assert not leave_what_is_sent([elsewhere, nobody], [deployed({1: 2})])
    assert not leave_what_is_sent([sending(2)], [deployed({1: 2}).model_copy(update={"swap": False})])


def test_a_wave_that_swaps_nothing_is_undone_as_ever(transition):
    assert while_swapped(transition, M, 2) == frozenset()


def test_letting_go_swaps_nothing_back_that_was_not_told_to(transition):
    stored = deployed({1: 1, 2: 1})

    assert [found.own for found in none_more([deployed({1: 2})], {stored.key: stored})] == [{1: 1, 2: 1}]


@pytest.mark.parametrize(("knew", "hears"), [((1,), (1, 2)), ((1, 2), (1, 2))])
def test_routers_learn_what_processes_go_over_to_and_forget_nothing(monkeypatch, knew, hears):
    """On a way back the generation that goes may be the only one that has an engine yet."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(*hears) if knew == (1,) else served(1))
    table = RouteTable(model="ranker", region="us", revision=1, shares=(share("us", 1),), served=served(*knew))
    facts, regions = facts_of({"us": table}), Regions()
    announcement = Announcement(routing.Gateways(NoStore(), regions, facts), facts, ())

    announcement.make()

    known = regions.tables.get("us", table)
    assert (announcement.made, known.shares) == (True, table.shares)
    assert [found.generation for found in known.served] == [1, 2]


def test_routers_keep_what_processes_hold_that_have_not_gone_back(transition):
    """Of a region that does not answer nothing is known."""
    back = state_undone(transition, M, 0, "routed")
    key = DeploymentKey(model=M, part="llm", region="us", hardware="gpu")

    def region(*ready, coming=()):
        replicas = tuple(
            Replica(id=f"r{n}", key=key, phase=ReplicaPhase.RUNNING, ready=(generation,), coming=coming)
            for n, generation in enumerate(ready)
        )
        return {"us": RegionState(region="us", gateway_url="http://gateway", replicas=replicas)}

    assert not_gone_back(M, back, region(1, 1)) == frozenset()
    assert not_gone_back(M, back, region(1, 2)) == {"us"}
    assert not_gone_back(M, back, region(1, 1, coming=(2,))) == {"us"}, (
        "they still fetch, and leave if one of them stays"
    )
    assert not_gone_back(M, back, {}) == frozenset()


def manifest(engine, refresh, **rollout):
    part = {"name": "llm", "engine": engine, "hardware": [{"kind": "cpu", "units": 1, "qps": 1}]}
    spec = {"parts": [part], "demand": [{"region": "eu", "qps": 1}], "rollout": {"refresh": refresh, **rollout}}
    return {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": M, "owner": "a"}, "spec": spec}


def test_only_engines_that_serve_by_themselves_swap():
    assert parse_manifest(manifest("vllm", "swap")).spec.rollout.refresh == "swap"
    with pytest.raises(InvalidInput, match=r"rollout\.refresh: 'swap' .* part 'llm' has engine 'torch'; allowed: auto"):
        parse_manifest(manifest("torch", "swap"))


@pytest.mark.parametrize(
    ("refresh", "seconds", "message"),
    [
        ("replace", 5, r"swapWaitSeconds: goes with refresh: swap, .* got refresh 'replace'"),
        ("swap", -1, r"swapWaitSeconds"),
    ],
)
def test_a_wait_for_swaps_goes_with_them_and_is_no_less_than_nothing(refresh, seconds, message):
    assert parse_manifest(manifest("vllm", "swap", swapWaitSeconds=0)).spec.rollout.swap_wait_seconds == 0
    with pytest.raises(InvalidInput, match=message):
        parse_manifest(manifest("vllm", refresh, swapWaitSeconds=seconds))
