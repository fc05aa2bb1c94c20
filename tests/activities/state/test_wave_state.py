"""The states of a transition and of its way back, and what each means for replica sets and routes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from activities.state.desired import DesiredFacts
from activities.state.replica_sets import former_generations, wanted_deployments
from activities.state.routes.route_shares import wanted_shares
from activities.state.routes.served_generations import served_generations
from activities.state.wave_state import (
    ModelWaveState,
    fits_at_once,
    peak,
    planned_state,
    running_state,
    state_at,
    state_back,
    state_undone,
)
from ipnext.artifacts.signing import write_key_pair
from ipnext.errors import NotFound
from ipnext.infra.assignment import host_holds
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.plan import CurrentState, ReplicaCount
from ipnext.model.planning.transition import (
    FleetState,
    GenerationReplicas,
    GenerationShare,
    RouteChange,
    Share,
    Transition,
    Wave,
)
from ipnext.model.registry.denials import Denial
from ipnext.model.registry.registry import Generation, LayoutPart, Segment, Snapshot, SnapshotManifest, SplitLayout
from ipnext.model.value import digest_of

M = "ranker"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(part: str, generation: int, count: int, region: str = "us-east") -> GenerationReplicas:
    return GenerationReplicas(model=M, part=part, generation=generation, region=region, hardware="cpu", count=count)


def share(generation: int, fraction: float) -> GenerationShare:
    return GenerationShare.model_validate(
        {"model": M, "from": "us-east", "to": "us-east", "generation": generation, "fraction": fraction}
    )


def moved(*shares: tuple[int, float]) -> RouteChange:
    entries = tuple(Share(to="us-east", generation=g, fraction=f) for g, f in shares)
    return RouteChange.model_validate({"model": M, "from": "us-east", "shares": entries})


@pytest.fixture
def transition() -> Transition:
    """Four old replicas to four new ones by way of a tenth."""
    return Transition.model_validate(
        {
            "from": FleetState(replicas=(row("dense", 1, 4),), traffic=(share(1, 1.0),)),
            "to": FleetState(replicas=(row("dense", 2, 4),), traffic=(share(2, 1.0),)),
            "waves": (
                Wave(scale_up=(row("dense", 2, 1),), route=(moved((1, 0.9), (2, 0.1)),), gate="canary"),
                Wave(scale_up=(row("dense", 2, 4),), route=(moved((2, 1.0)),), scale_down=(row("dense", 1, 0),)),
            ),
        }
    )


SLOT = ("dense", "us-east", "cpu")


def test_capacity_comes_before_traffic_and_goes_after_it(transition):
    up, routed, released = (state_at(transition, M, 1, phase) for phase in ("scaled_up", "routed", "released"))

    assert (up.counts, up.shares["us-east"][0].fraction) == ({(SLOT, 1): 4, (SLOT, 2): 4}, 0.9)
    assert (routed.counts, [s.generation for s in routed.shares["us-east"]]) == (up.counts, [2])
    assert released.counts == {(SLOT, 2): 4}


def test_the_way_back_brings_the_former_capacity_before_it_sends_traffic(transition):
    up, routed, released = (state_back(transition, M, 1, phase) for phase in ("scaled_up", "routed", "released"))

    assert up.counts == {(SLOT, 1): 4, (SLOT, 2): 4}
    assert [(s.generation, s.fraction) for s in routed.shares["us-east"]] == [(1, 1.0)]
    assert released.counts == {(SLOT, 1): 4}


def test_a_wave_undone_passes_through_its_own_states_backwards(transition):
    up, routed, released = (state_undone(transition, M, 1, phase) for phase in ("scaled_up", "routed", "released"))

    assert up.counts == routed.counts == {(SLOT, 1): 4, (SLOT, 2): 4}
    assert [(s.generation, s.fraction) for s in up.shares["us-east"]] == [(2, 1.0)]
    assert [(s.generation, s.fraction) for s in routed.shares["us-east"]] == [(1, 0.9), (2, 0.1)]
    assert (released.counts, released.shares) == ({(SLOT, 1): 4, (SLOT, 2): 1}, routed.shares)
    assert state_undone(transition, M, 0, "released").counts == {(SLOT, 1): 4}


@pytest.mark.parametrize(("supply", "fits"), [(8.0, True), (7.5, False)])
def test_a_revert_in_one_step_fits_up_to_the_whole_supply(transition, supply, fits):
    """Four former replicas beside four new ones, of a unit each."""
    apart = transition.model_copy(update={"refresh": "replace"})

    assert fits_at_once(apart, M, {("dense", "cpu"): 1.0}, {("us-east", "cpu"): supply}) is fits


def test_one_process_holds_both_generations_so_replicas_are_the_larger_count(transition):
    assert state_at(transition, M, 0, "scaled_up").replicas(SLOT) == 4
    assert peak(transition, M) == {SLOT: 4}


def test_with_processes_of_its_own_a_way_back_counts_into_what_a_slot_may_have(transition):
    """Of four former replicas one is gone when three more are added: on the way back all four stand beside four."""
    first, second = transition.waves
    first = first.model_copy(update={"scale_down": (row("dense", 1, 3),)})
    apart = transition.model_copy(update={"refresh": "replace", "waves": (first, second)})

    assert state_at(apart, M, 1, "scaled_up").replicas(SLOT) == 7
    assert state_back(apart, M, 1, "scaled_up").replicas(SLOT) == 8
    assert peak(apart, M) == {SLOT: 8}, "that supply is given to no one else meanwhile"


@pytest.fixture
def facts(kit) -> DesiredFacts:
    manifest = parse_manifest(kit.manifest(M, rollout={"keepWarm": 1}))
    generations = {
        number: Generation(
            model=M,
            number=number,
            snapshots={"sparse": 1, "dense": number},
            created_at=NOW,
            serving_at=NOW + timedelta(hours=number) if number < 4 else None,
        )
        for number in (1, 2, 3, 4)
    }
    signatures = {"sparse": kit.SPARSE, "dense": kit.DENSE}
    snapshots = {
        (part, number): Snapshot(
            model=M,
            part=part,
            number=number,
            digest=digest_of([part, number]),
            uri=f"u/{part}{number}",
            manifest=SnapshotManifest(engine="torch", signature=signatures[part], files=()),
            created_at=NOW + timedelta(hours=number),
        )
        for part in ("sparse", "dense")
        for number in (1, 2, 3, 4)
    }
    return DesiredFacts(
        manifest=manifest, target=4, generations=generations, snapshots=snapshots, deployments={}, tables={}
    )


def both(generation: int, count: int, region: str = "us-east") -> dict:
    return {((part, region, "cpu"), generation): count for part in ("sparse", "dense")}


def with_deployments(facts: DesiredFacts, state: ModelWaveState) -> DesiredFacts:
    held = {deployment.key: deployment for deployment in wanted_deployments(facts, state)}
    return DesiredFacts(**{**vars(facts), "deployments": held})


def test_a_snapshot_that_two_generations_share_is_held_once_for_both(facts):
    deployments = wanted_deployments(facts, ModelWaveState(counts={**both(3, 2), **both(4, 1)}))

    holds = {d.key.part: [(h.snapshot, h.generations) for h in d.holds] for d in deployments}
    assert holds == {"sparse": [(1, (3, 4))], "dense": [(3, (3,)), (4, (4,))]}
    assert {d.replicas for d in deployments} == {2}


@pytest.mark.parametrize("is_signed", [False, True])
def test_segments_of_a_signed_snapshot_are_hashed_and_need_no_signature(facts, kit, tmp_path, is_signed):
    """Also a segment that is called like the part whose hosts load it."""
    write_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    signers = {"signers": {"publicKeys": [(tmp_path / "key.pub.pem").read_text()]}} if is_signed else {}
    manifest = parse_manifest(kit.manifest(M, validation=signers))
    one = {"modules": (), "size_bytes": 1, "hardware": ({"kind": "cpu", "units": 1, "qps": 100},)}
    parts = tuple(
        LayoutPart(name=name, segments=(Segment(name=segment, stage=0, snapshot=4, size_bytes=1),), **one)
        for name, segment in (("sparse", "sparse"), ("dense", "sparse-s1"))
    )
    cut = SplitLayout(
        source="whole", digest="0" * 64, cut="0" * 64, form=1, equal_at=(), parts=parts, graph=manifest.spec.graph
    )
    generations = {**facts.generations, 4: facts.generations[4].model_copy(update={"layout": cut})}
    snapshots = {
        **facts.snapshots,
        ("sparse-s1", 4): facts.snapshots["dense", 4].model_copy(update={"part": "sparse-s1"}),
    }
    changed = replace(facts, manifest=manifest, generations=generations, snapshots=snapshots)
    deployments = wanted_deployments(changed, ModelWaveState(counts={**both(3, 1), **both(4, 1)}))
    found = {(held.part or d.key.part, held.snapshot): held for d in deployments for held in d.holds}
    assert {of: (held.signers is not None, held.is_cut_from_signed) for of, held in found.items()} == {
        ("sparse", 1): (is_signed, False),
        ("dense", 3): (is_signed, False),
        ("sparse", 4): (False, is_signed),
        ("sparse-s1", 4): (False, is_signed),
    }
    assert all(hold.is_guarded == is_signed for d in deployments for hold in host_holds(d).holds)


def test_former_generations_stay_warm_where_they_are_loaded_and_as_many_as_asked(facts):
    loaded = with_deployments(facts, ModelWaveState(counts={**both(2, 2), **both(3, 2)}))

    after = wanted_deployments(loaded, ModelWaveState(counts=both(4, 2)))

    assert {d.generations for d in after} == {(3, 4)}, "3 served last and is kept; 2 is let go"
    fresh = wanted_deployments(facts, ModelWaveState(counts=both(4, 2)))
    assert {d.generations for d in fresh} == {(4,)}, "nothing is loaded only to be warm"


@pytest.mark.trust
def test_a_denied_generation_does_not_stay_warm_and_hosts_may_not_load_what_is_denied(facts):
    loaded = with_deployments(facts, ModelWaveState(counts={**both(3, 2), **both(4, 2)}))
    denial = Denial(number=1, digest="a" * 64, reason="poisoned", denied_by="ann", denied_at=NOW)

    named = DesiredFacts(**{**vars(loaded), "denied": {("dense", 3): denial}})
    held = {d.key.part: d.generations for d in wanted_deployments(named, ModelWaveState(counts=both(4, 2)))}
    assert held == {"sparse": (4,), "dense": (4,)}

    serving = wanted_deployments(named, ModelWaveState(counts=both(3, 2)))
    assert {(d.key.part, bool(one.denied)) for d in serving for one in d.holds} == {("dense", True), ("sparse", False)}


def test_a_part_that_neither_the_manifest_nor_a_replica_set_has_can_not_be_run(facts):
    with pytest.raises(NotFound, match=r"has no way to run .*gone"):
        wanted_deployments(facts, ModelWaveState({(("gone", "us-east", "cpu"), 1): 1}))


def test_a_generation_that_never_served_is_not_kept(facts):
    assert former_generations(facts, {3}) == (2, 1)


def test_a_region_serves_what_it_holds_completely(facts):
    state = ModelWaveState(counts={**both(3, 1), (("dense", "us-east", "cpu"), 4): 1})

    served = served_generations(facts, "us-east", wanted_deployments(facts, state))

    assert [s.generation for s in served] == [3]


def test_a_router_learns_what_it_needs_to_let_snapshots_stand_in_for_each_other(facts, kit):
    [served] = served_generations(facts, "us-east", wanted_deployments(facts, ModelWaveState(counts=both(3, 1))))

    assert served.facts["dense"].created_at == NOW + timedelta(hours=3)
    assert served.facts["sparse"].created_at == NOW + timedelta(hours=1)
    assert {part: one.signature for part, one in served.facts.items()} == {
        "sparse": digest_of(kit.SPARSE),
        "dense": digest_of(kit.DENSE),
    }


def test_a_region_without_demand_that_hosts_answers_its_own_users(facts, kit):
    manifest = parse_manifest(kit.manifest(M, demand=[{"region": "us-east", "qps": 10}]))
    lonely = DesiredFacts(**{**vars(facts), "manifest": manifest})
    shares = {"us-east": (RouteShare(to="eu-west", generation=3, fraction=1.0),)}
    state = ModelWaveState(counts=both(3, 1, "eu-west"), shares=shares)

    wanted = wanted_shares(lonely, state, wanted_deployments(lonely, state))

    assert wanted["eu-west"] == (RouteShare(to="eu-west", generation=3, fraction=1.0),)


@pytest.mark.parametrize(("unready", "answered"), [((), True), ({("eu-west", 3)}, False)])
@pytest.mark.parametrize("lost", [(), ("us-east",)])
def test_no_users_come_to_replicas_that_may_never_have_started(facts, kit, unready, answered, lost):
    """Neither those of a region without demand, nor those of a lost one."""
    manifest = parse_manifest(kit.manifest(M, demand=[{"region": "us-east", "qps": 10}]))
    users = "us-east" if lost else "eu-west"
    lonely = replace(facts, manifest=manifest, lost=frozenset(lost))
    counts = {**both(3, 1, "us-east"), **both(3, 1, "eu-west")}
    state = ModelWaveState(counts=counts, shares={"us-east": (RouteShare(to="us-east", generation=3, fraction=1.0),)})
    wanted = wanted_shares(lonely, state, wanted_deployments(lonely, state), unready=unready)
    assert wanted[users] == ((RouteShare(to="eu-west", generation=3, fraction=1.0),) if answered else ())


def test_a_transition_starts_from_generations_with_traffic_only(facts):
    loaded = with_deployments(facts, ModelWaveState(counts={**both(2, 2), **both(3, 2)}))

    origin = running_state(M, loaded.deployments.values(), [], demanding={"us-east"})

    assert (origin.replicas, origin.traffic) == ((), ())


def test_traffic_to_what_no_replica_set_holds_any_more_counts_for_what_is_held(facts):
    loaded = with_deployments(facts, ModelWaveState(counts=both(2, 2)))
    shares = tuple(RouteShare(to="us-east", generation=g, fraction=f) for g, f in ((2, 0.4), (3, 0.6)))
    table = RouteTable(model=M, region="us-east", revision=1, shares=shares, served=())

    origin = running_state(M, loaded.deployments.values(), [table], demanding={"us-east"})

    assert [(share.generation, share.fraction) for share in origin.traffic] == [(2, 1.0)]
    assert {row.generation for row in origin.replicas} == {2}


def test_where_processes_go_over_what_a_region_could_not_be_told_is_what_its_users_start_from(facts):
    """Written down is the generation to go back to; its users are still sent to the one that it never left."""
    loaded = with_deployments(facts, ModelWaveState(counts={**both(2, 2), **both(1, 1, "eu-west")}, apart=True))
    tables = [
        RouteTable(
            model=M,
            region=region,
            revision=1,
            shares=(
                RouteShare(to="us-east", generation=3, fraction=0.6),
                RouteShare(to="eu-west", generation=1, fraction=0.4),
            ),
            served=(),
        )
        for region in ("us-east", "eu-west")
    ]

    def begins(*, swap: bool, lost=()) -> tuple[set[tuple[str, str, int, float]], set[tuple[str, int]]]:
        held = [found.model_copy(update={"swap": swap}) for found in loaded.deployments.values()]
        origin = running_state(M, held, tables, demanding={"us-east"}, lost=lost)
        traffic = {(found.origin, found.to, found.generation, found.fraction) for found in origin.traffic}
        return traffic, {(row.region, row.generation) for row in origin.replicas}

    both_held = {("us-east", 2), ("eu-west", 1)}
    assert begins(swap=True) == ({("us-east", "us-east", 2, 0.6), ("us-east", "eu-west", 1, 0.4)}, both_held)
    assert begins(swap=False) == ({("us-east", "eu-west", 1, 1.0)}, {("eu-west", 1)})
    assert begins(swap=True, lost={"us-east"}) == ({("us-east", "eu-west", 1, 1.0)}, both_held)


def test_what_a_region_without_demand_sends_to_keeps_its_replicas_and_counts_as_no_traffic(facts):
    loaded = with_deployments(facts, ModelWaveState(counts={**both(2, 2, "eu-west"), **both(3, 1)}))
    shares = {"us-east": ("us-east", 3), "eu-west": ("eu-west", 2)}
    tables = [
        RouteTable(
            model=M, region=region, revision=1, shares=(RouteShare(to=to, generation=g, fraction=1.0),), served=()
        )
        for region, (to, g) in shares.items()
    ]

    origin = running_state(M, loaded.deployments.values(), tables, demanding={"us-east"})
    gone = running_state(M, loaded.deployments.values(), tables, demanding={"us-east"}, lost={"eu-west"})

    assert {share.origin for share in origin.traffic} == {"us-east"}
    assert {(row.region, row.generation, row.count) for row in origin.replicas} == {
        ("eu-west", 2, 2),
        ("us-east", 3, 1),
    }
    assert {row.generation for row in gone.replicas} == {3}


def test_a_plan_s_rows_become_rows_of_the_target_generation():
    class Rows:
        replicas = ()
        traffic = ()

    assert planned_state(M, 4, Rows(), parts=("a",)) == FleetState()


def test_a_plan_s_rows_of_parts_that_the_generation_lacks_are_not_its_target():
    rows = tuple(ReplicaCount(model=M, part=part, region="us-east", hardware="cpu", count=2) for part in ("a", "b"))
    found = planned_state(M, 1, CurrentState(replicas=rows), parts=("a",))
    assert [(row.part, row.generation, row.count) for row in found.replicas] == [("a", 1, 2)]


def test_a_plan_s_routes_without_a_share_are_not_its_target():
    routes = [
        {"model": M, "from": "us-east", "to": to, "fraction": y} for to, y in (("us-east", 1.0), ("eu-west", 0.0))
    ]
    found = planned_state(M, 1, CurrentState.model_validate({"traffic": routes}), parts=())
    assert [(row.to, row.generation, row.fraction) for row in found.traffic] == [("us-east", 1, 1.0)]


def test_what_was_sent_to_a_lost_region_answers_nobody_and_its_replicas_still_count(facts):
    def share_to(to: str, fraction: float) -> RouteShare:
        return RouteShare(to=to, generation=2, fraction=fraction)

    held = with_deployments(facts, ModelWaveState(counts={**both(2, 1), **both(2, 1, "eu-west")})).deployments.values()
    split = RouteTable(
        model=M, region="us-east", revision=1, shares=(share_to("eu-west", 0.75), share_to("us-east", 0.25)), served=()
    )
    gone = split.model_copy(update={"region": "eu-west", "shares": (share_to("eu-west", 1.0),)})

    origin = running_state(M, held, [split, gone], demanding={"us-east", "eu-west"}, lost={"eu-west"})

    assert [(s.origin, s.to, s.fraction) for s in origin.traffic] == [("us-east", "us-east", 1.0)]
    assert {row.region for row in origin.replicas} == {"eu-west", "us-east"}
