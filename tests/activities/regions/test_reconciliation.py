"""What the reconciler tells a region again, and what it leaves to a repair."""

import pytest

from activities.regions.reconciliation import DesiredRegion, DesiredSet, differences, in_sync
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase

KEY = DeploymentKey(model="m", part="dense", region="us-east", hardware="cpu")
OTHER = KEY.model_copy(update={"part": "sparse"})


def state(*keys: DeploymentKey, ready: tuple[int, ...] = (2,)) -> RegionState:
    """One replica of each set, and a gateway at revision 1."""
    replicas = tuple(Replica(id=str(key), key=key, phase=ReplicaPhase.RUNNING, ready=ready) for key in keys)
    return RegionState(region="us-east", gateway_url="http://127.0.0.1:1", replicas=replicas, routes={"m": 1})


def desired(*, astray: bool) -> DesiredRegion:
    """Generation 1 in one set, where replicas of generation 2 run in two; the route table has a later revision."""
    return DesiredRegion(
        sets={KEY: DesiredSet(1, frozenset({1}), {1: 1})},
        tables={"m": 2},
        settled=frozenset({"m"}),
        astray=frozenset({"m"} if astray else ()),
    )


def test_replica_sets_that_differ_are_applied_and_deleted() -> None:
    found = differences(desired(astray=False), state(KEY, OTHER))

    assert (found.apply, found.delete, found.route) == ([KEY], [OTHER], ["m"])


@pytest.mark.parametrize("ready", [(2,), (1,)])
def test_replicas_of_a_model_whose_users_are_astray_are_left_to_its_repair(ready: tuple[int, ...]) -> None:
    """Its stored sets may be those of a wave that was not reverted.

    Users are still sent to the replicas that run.
    """
    found = differences(desired(astray=True), state(KEY, OTHER, ready=ready))

    assert (found.apply, found.delete, found.route) == ([], [], ["m"])


@pytest.mark.parametrize(
    ("ready", "synced"),
    [
        ([(1, 2), (1, 2), (3,)], True),
        ([(1, 2), (1, 2), (1, 2)], False),
        ([(1, 2), (3,), (3,)], False),
        ([(1, 2), (1, 2)], False),
    ],
)
def test_processes_of_a_shadow_count_apart(ready, synced) -> None:
    wanted = DesiredSet(3, frozenset({1, 2, 3}), {}, {3: 1})
    running = [Replica(id=str(n), key=KEY, phase=ReplicaPhase.RUNNING, ready=held) for n, held in enumerate(ready)]

    assert in_sync(wanted, running) is synced


@pytest.mark.parametrize(("followed", "told"), [({}, ["n"]), ({"n": 3}, [])])
def test_a_gateway_that_knows_nothing_of_a_model_in_its_first_rollout_is_told_to_refuse_its_users(
    followed, told
) -> None:
    """What the rollout has told it stays."""
    moving = DesiredRegion(sets={}, tables={}, settled=frozenset(), refusing={"n": 1})

    assert differences(moving, state().model_copy(update={"routes": followed})).route == told
