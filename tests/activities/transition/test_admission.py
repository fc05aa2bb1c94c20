"""What a transition waits for before it is planned."""

import pytest

from activities.transition.admission import REPAIR_DIP, step_policy, wait_for_repair
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.manifest.rollout import RolloutSpec
from ipnext.model.planning.transition import FleetState, GenerationReplicas


def placed(*regions: str) -> FleetState:
    rows = [
        GenerationReplicas(model="m", part="p", generation=2, region=region, hardware="cpu", count=1)
        for region in regions
    ]
    return FleetState(replicas=tuple(rows))


@pytest.mark.parametrize("kind", [ChangeKind.PUBLISH, ChangeKind.APPLY])
def test_a_plan_from_before_a_region_was_lost_is_not_begun(kind):
    with pytest.raises(Unavailable, match="waiting for a plan without 'eu'"):
        wait_for_repair(kind, placed("eu", "us"), {"eu"})


@pytest.mark.parametrize(
    ("kind", "lost"),
    [(ChangeKind.PUBLISH, {"de"}), (ChangeKind.PUBLISH, set()), (ChangeKind.ROLLBACK, {"eu"})],
)
def test_all_else_begins(kind, lost):
    assert wait_for_repair(kind, placed("eu", "us"), lost) is None


def test_a_move_by_such_a_plan_is_refused_for_the_repair_waits_until_it_has_ended():
    assert "'eu' was lost" in wait_for_repair(ChangeKind.MOVE, placed("eu", "us"), {"eu"})


def test_a_rollback_waits_for_a_plan_only_where_nothing_that_it_goes_back_to_is_left():
    with pytest.raises(Unavailable, match="waiting for a plan without 'eu'"):
        wait_for_repair(ChangeKind.ROLLBACK, placed("eu", "us"), {"eu", "us"})


@pytest.mark.parametrize("kind", sorted(set(ChangeKind) - {ChangeKind.REPAIR}))
def test_only_a_repair_dips_against_the_manifest(kind):
    policy = step_policy(RolloutSpec(), kind, "replace")
    assert (policy.when_short, policy.max_dip) == ("surge", 0.0)


@pytest.mark.parametrize(("short", "most"), [({}, REPAIR_DIP), ({"whenShort": "dip", "maxDip": 0.75}, 0.75)])
def test_a_repair_dips_as_far_as_the_manifest_or_its_own_limit_allows(short, most):
    policy = step_policy(RolloutSpec.model_validate(short), ChangeKind.REPAIR, "replace")
    assert (policy.when_short, policy.max_dip) == ("dip", most)
