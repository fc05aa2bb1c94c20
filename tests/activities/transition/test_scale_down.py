"""What is released on a way back, and who answers meanwhile, where a region can't be reached."""

from collections.abc import Collection
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.runtime.deadline import Deadline
from activities.state.replica_sets import choose_kept_sets, shrinking_first
from activities.state.wave_state import ModelWaveState, state_undone
from activities.transition import traffic_shift as routing
from activities.transition.activities import _check_reached
from activities.transition.scale_down import CapacityRelease, ReleaseExceptions, shrinking, stray
from activities.transition.scale_up import Capacity
from activities.transition.wave_context import WaveContext, list_routable
from ipnext.errors import Unavailable
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import FleetState, GenerationReplicas, Transition, Wave
from ipnext.model.registry.registry import GraphNode, PartGraph

M = "ranker"
GRAPH = PartGraph(nodes=(GraphNode(name="p", part="p", inputs={"x": "request.x"}),), outputs={"y": "p.y"})
SERVED = ServedGeneration(generation=1, graph=GRAPH, snapshots={"p": 1})


def key(region: str) -> DeploymentKey:
    return DeploymentKey(model=M, part="p", region=region, hardware="cpu")


def deployed(region: str, *generations: int, replicas: int = 1) -> Deployment:
    holds = tuple(
        AssignedSnapshot(snapshot=n, digest=f"{n:064x}", uri=f"s3://{n}", generations=(n,)) for n in generations
    )
    return Deployment(key=key(region), replicas=replicas, engine="torch", units=1, qps=10, holds=holds)


def table(region: str, to: str, generation: int) -> RouteTable:
    shares = (RouteShare(to=to, generation=generation, fraction=1.0),)
    return RouteTable(model=M, region=region, revision=1, shares=shares, served=())


class Regions:
    """Regions in memory; those in `away` do not answer."""

    def __init__(self, *away: str) -> None:
        self.away, self.told = away, []

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        assert models == [M]
        self._reach(region)
        return RegionState(region=region, gateway_url="http://gateway", routes={M: 1})

    def route(self, found: RouteTable) -> None:
        self._reach(found.region)

    def apply(self, found: Deployment) -> None:
        self._reach(found.key.region)
        self.told.append(("apply", found.key.region, found.replicas))

    def delete(self, found: DeploymentKey) -> None:
        self._reach(found.region)
        self.told.append(("delete", found.region, 0))

    def _reach(self, region: str) -> None:
        if region in self.away:
            raise Unavailable(region)


class Written:
    """A store that only remembers what is left out of it."""

    def __init__(self) -> None:
        self.put, self.deleted, self.drains, self.units = [], [], (), 0

    @contextmanager
    def read(self):
        yield SimpleNamespace(drains=lambda: self.drains)

    @contextmanager
    def begin(self, _):
        self.units += 1
        yield SimpleNamespace(
            put_route=lambda _: None,
            put_deployment=self.put.append,
            delete_deployment=self.deleted.append,
            drains=lambda: self.drains,
        )


@pytest.fixture
def released(monkeypatch):
    """Generation 2 came to `eu` and `de` and goes again. The users of `us` were sent to `eu`, those of `eu` to `de`."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: (SERVED,))

    def run(regions: Regions, *, drains=(), **how) -> tuple[Written, Unavailable | None]:
        stored = {key(region): deployed(region, 1, 2, replicas=3) for region in ("eu", "us")}
        stored[key("de")] = deployed("de", 2)
        tables = {"us": table("us", "eu", 2), "eu": table("eu", "de", 2)}
        facts = SimpleNamespace(
            model=M,
            shadow=None,
            access="open",
            demand=dict.fromkeys(tables, 1.0),
            generations={number: SimpleNamespace(parts=("p",)) for number in (1, 2)},
            deployments=stored,
            tables=tables,
            lost=frozenset(),
        )
        shares = {region: table(region, region, 1).shares for region in tables}
        wanted, written = [deployed("eu", 1), deployed("us", 1)], Written()
        written.drains = drains
        releasing = CapacityRelease(written, regions, facts)
        gone = [stored[key("de")]]
        shrink = partial(releasing.shrink, shares, wanted, wanted, gone, **how)
        return written, ActivityEnvironment().run(shrink)

    return run


def test_what_the_gateway_of_a_region_that_is_away_still_sends_to_stays(released):
    regions = Regions("us")

    written, unreachable = released(regions)

    assert unreachable is not None
    assert regions.told == [("delete", "de", 0)]
    assert written.deleted == [key("de")]


def test_once_all_gateways_follow_all_of_it_goes(released):
    regions = Regions()

    written, unreachable = released(regions)

    assert unreachable is None
    assert sorted(regions.told) == [("apply", "eu", 1), ("apply", "us", 1), ("delete", "de", 0)]
    assert written.deleted == [key("de")]


def test_what_is_needed_for_what_did_not_come_back_stays(released):
    regions = Regions()

    written, unreachable = released(regions, left=ReleaseExceptions(needed=frozenset({("de", 2), ("eu", 1)})))

    assert unreachable is None
    assert regions.told == [("apply", "us", 1)]
    assert written.deleted == []


def test_nothing_goes_where_a_region_was_lost_since_what_may_go_was_computed(released, monkeypatch):
    """Its users may have been sent to what was to go."""
    monkeypatch.setattr(routing.Gateways, "follow", lambda *_, **__: None)
    regions = Regions()

    written, error = released(regions, drains=(SimpleNamespace(region="us", lost=True, holds=True, force=False),))

    assert "'us' was lost" in str(error)
    assert (regions.told, written.deleted) == ([], [])


@pytest.mark.parametrize(
    ("waiting", "told"), [(("us",), [("apply", "us", 1)]), ((), [("apply", "eu", 1), ("apply", "us", 1)])]
)
def test_no_processes_are_swapped_that_a_gateway_still_sends_to(monkeypatch, waiting, told):
    """A revert stored the swap back in `eu` before it reached it; the users of `us` are still sent to generation 2."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: (SERVED,))
    swapped = [deployed(region, 1).model_copy(update={"own": {1: 1}, "swap": True}) for region in ("eu", "us")]
    facts = SimpleNamespace(
        model=M,
        shadow=None,
        access="open",
        demand={"us": 1.0},
        generations={number: SimpleNamespace(parts=("p",)) for number in (1, 2)},
        deployments={found.key: found for found in swapped},
        tables={"us": table("us", "eu", 2)},
        lost=frozenset(),
    )
    regions, shares = Regions(), {"us": table("us", "us", 1).shares}
    releasing, left = CapacityRelease(Written(), regions, facts), ReleaseExceptions(users=waiting)

    error = ActivityEnvironment().run(partial(releasing.shrink, shares, swapped, swapped, [], left=left))

    assert (regions.told, error is not None) == (told, bool(waiting))


class Draining(Regions):
    """A region whose replica streams for some looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        assert models == [M]
        self.looks -= 1
        phase = ReplicaPhase.DRAINING if self.looks >= 0 else ReplicaPhase.RUNNING
        replica = Replica(id="r", key=key(region), phase=phase)
        return RegionState(region=region, gateway_url="http://gateway", replicas=(replica,))


@pytest.mark.parametrize(("drain_seconds", "seconds", "waits"), [(300.0, 60, 2), (None, 60, 0), (300.0, 0, 0)])
def test_what_streams_its_last_answers_is_waited_for_until_the_wave_has_no_time_left(drain_seconds, seconds, waits):
    told = [deployed("eu", 1).model_copy(update={"drain_seconds": drain_seconds})]
    paused = []

    def run() -> None:
        deadline = Deadline(seconds, pause=paused.append)
        Capacity(Draining(2), deadline).until_drained(told)

    ActivityEnvironment().run(run)

    assert len(paused) == waits


@pytest.mark.parametrize(
    ("lost", "ends_in", "kept"),
    [
        ({"de"}, "de", {"eu": 3, "de": 1}),
        ({"de"}, "eu", {"eu": 1, "de": 1}),
        (set(), "de", {"eu": 1, "de": 1}),
    ],
)
def test_a_run_on_its_way_to_a_lost_region_releases_nothing_in_those_that_are_left(lost, ends_in, kept):
    stored = {key("eu"): deployed("eu", 1, replicas=3), key("de"): deployed("de", 2)}
    facts = SimpleNamespace(deployments=stored, lost=frozenset(lost))

    found = choose_kept_sets(facts, {ends_in}, (deployed("eu", 1), deployed("de", 2)))

    assert {d.key.region: d.replicas for d in found} == kept


def test_a_replica_set_that_would_go_stays_while_the_region_that_replaces_it_is_lost():
    stored = {key("eu"): deployed("eu", 1, replicas=3), key("de"): deployed("de", 2)}
    facts = SimpleNamespace(deployments=stored, lost=frozenset({"de"}))

    found = choose_kept_sets(facts, {"de"}, (deployed("de", 2),))

    assert {d.key.region: d.replicas for d in found} == {"eu": 3, "de": 1}


def test_what_is_released_is_written_in_one_unit_and_nothing_of_a_region_that_is_away():
    written, regions = Written(), Regions("us")
    facts = SimpleNamespace(model=M, shadow=None, lost=frozenset())
    release = CapacityRelease(written, regions, facts).release

    error = ActivityEnvironment().run(
        lambda: release([deployed("eu", 1), deployed("us", 1)], [deployed("de", 1), deployed("fr", 1)])
    )

    assert error is not None
    assert [found.key for found in written.put] == [key("eu")]
    assert written.deleted == [key("de"), key("fr")]
    assert written.units == 1


@pytest.mark.parametrize("back", [False, True])
def test_what_a_lost_region_held_is_struck_off_only_while_it_is_lost(back):
    """Once it is back it was told what the store named then: to be asked again, it has to stay written down."""
    written, regions = Written(), Regions()
    drain = SimpleNamespace(region="eu", lost=True, holds=True, force=False)
    written.drains = () if back else (drain,)
    facts = SimpleNamespace(model=M, shadow=None, lost=frozenset({"eu"}))
    release = CapacityRelease(written, regions, facts).release

    error = ActivityEnvironment().run(lambda: release((), [deployed("eu", 1)]))

    assert (error is not None, written.deleted, regions.told) == (back, [] if back else [key("eu")], [])


@pytest.mark.parametrize(("silent", "fails"), [((), False), (("us",), True), (("eu",), False), (("elsewhere",), False)])
def test_no_gateway_moves_on_while_another_one_that_has_to_does_not_answer(silent, fails):
    facts = SimpleNamespace(tables={"us": table("us", "eu", 1), "eu": table("eu", "eu", 1)})
    shares = {"us": table("us", "us", 1).shares, "eu": table("eu", "eu", 1).shares}

    with pytest.raises(Unavailable, match="us") if fails else nullcontext():
        _check_reached(facts, shares, silent)


def transition(*, end: str) -> Transition:
    """From `eu` to `end`, in one wave."""

    def state(region: str) -> FleetState:
        row = GenerationReplicas(model=M, part="p", generation=1, region=region, hardware="cpu", count=1)
        return FleetState(replicas=(row,))

    origin, to = state("eu"), state(end)
    down = tuple(row.model_copy(update={"count": 0}) for row in origin.replicas)
    return Transition.model_validate(
        {"from": origin, "to": to, "waves": (Wave(scale_up=to.replicas, scale_down=down), Wave())}
    )


def test_replica_sets_that_answer_nobody_and_are_in_no_wave_go_first():
    stored = {key(region): deployed(region, 1) for region in ("eu", "de", "us", "gone")}
    tables = {"us": table("us", "us", 1)}
    facts = SimpleNamespace(model=M, shadow=None, deployments=stored, tables=tables, lost=frozenset({"gone"}))

    assert [found.key.region for found in stray(facts, transition(end="eu"))] == ["de"]


def test_a_region_is_told_of_fewer_replicas_before_the_store_names_fewer():
    stored = {key(region): deployed(region, 1, replicas=3) for region in ("eu", "us", "gone")}
    facts = SimpleNamespace(deployments=stored, lost=frozenset({"gone"}))
    wanted = [
        deployed("eu", 1, replicas=2),
        deployed("us", 1, replicas=3),
        deployed("gone", 1, replicas=1),
        deployed("de", 1),
    ]

    assert [found.key.region for found in shrinking(facts, wanted)] == ["eu"]


@pytest.mark.parametrize(("back", "expected"), [(False, ["eu", "us"]), (True, ["eu"])])
def test_no_gateway_is_sent_to_replica_sets_that_a_wave_does_not_lead_to(back, expected):
    """They may never have started.

    On a way back all that it does not leave, on the way there what an earlier change left.
    """
    stored = {key(region): deployed(region, 1) for region in ("eu", "de", "us")}
    facts = SimpleNamespace(
        model=M, shadow=None, access="open", deployments=stored, tables={"us": table("us", "us", 1)}, lost=frozenset()
    )
    planned = transition(end="eu")
    released = state_undone(planned, M, 0, "released")
    reaching = SimpleNamespace(wave=SimpleNamespace(back=back), facts=facts, transition=planned, final_state=released)

    assert [found.key.region for found in list_routable(reaching)] == expected


@pytest.mark.parametrize(("lost", "spared", "stuck"), [("de", True, True), ("de", False, False), ("us", True, False)])
def test_a_run_on_its_way_to_a_lost_region_goes_back_where_a_wave_counts_on_what_is_spared(lost, spared, stuck):
    stored = {key("eu"): deployed("eu", 1)} if spared else {}
    facts = SimpleNamespace(deployments=stored, lost=frozenset({lost}), generations={})
    record = SimpleNamespace(transition=transition(end="de"))
    wave = WaveInput(transition_id="t", model=M, generation=1, index=1, deadline_seconds=9)

    found = WaveContext(wave, record, facts, ModelWaveState({(("p", "de", "cpu"), 1): 1})).stuck

    assert (found is not None) is stuck
    assert found is None or not found.ok
    assert WaveContext(wave.model_copy(update={"back": True}), record, facts, ModelWaveState()).stuck is None


@pytest.mark.parametrize(
    ("served", "lost", "reverted"),
    [(None, {"de"}, True), (datetime.now(UTC), {"de"}, False), (None, {"us"}, False), (None, set(), False)],
    ids=["never served", "served before", "another region is lost", "no region is lost"],
)
def test_a_run_whose_new_generation_would_be_in_lost_regions_only_is_reverted(served, lost, reverted):
    """It would end as done, and a generation that no host has loaded would count as serving."""
    generations = {1: SimpleNamespace(serving_at=served)}
    facts = SimpleNamespace(deployments={}, lost=frozenset(lost), generations=generations)
    wave = WaveInput(transition_id="t", model=M, generation=1, index=1, deadline_seconds=9)

    found = WaveContext(wave, SimpleNamespace(transition=transition(end="de")), facts, ModelWaveState()).stuck

    assert (found is not None and found.reason is Reason.REGION_UNREACHABLE) is reverted


def test_what_shrinks_is_told_before_what_grows():
    wanted = [deployed("a", 1, replicas=3), deployed("b", 1, replicas=1), deployed("c", 1, replicas=2)]

    found = shrinking_first(wanted, {key("a"): 2, key("b"): 2, key("c"): 2})

    assert [one.key.region for one in found] == ["b", "c", "a"]
    assert [one.key.region for one in shrinking_first(wanted, {})] == ["a", "b", "c"]
