"""A region that comes back while a model is retired was told what the store had of it.

Nothing is struck off before it is asked again.
"""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.regions.failover import RegionFailover
from activities.transition.takeover import TakeoverActivities
from ipnext.errors import RegionUnreachable, Unavailable
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.changes.takeover import TakeOver
from ipnext.model.lifecycle.status import ConditionType, Reason

MODEL, REGION = "ranker", "us-east"


@pytest.fixture
def retiring(house):
    """A model with a replica set and a route table in one region, and the stage of its retirement."""
    house.apply(MODEL)
    change = house.ask(MODEL, ChangeKind.RETIRE, "retirement")
    key = DeploymentKey(model=MODEL, part="p", region=REGION, hardware="cpu")
    with house.store.begin(MODEL) as unit:
        unit.update_change(change.id, state=ChangeState.RUNNING)
        unit.put_deployment(Deployment(key=key, replicas=1, engine="torch", units=1, qps=10))
        shares = (RouteShare(to=REGION, generation=1, fraction=1.0),)
        unit.put_route(RouteTable(model=MODEL, region=REGION, revision=1, shares=shares, served=()))
    return StageInput(model=MODEL, change_id=change.id, kind=ChangeKind.RETIRE, generation=0)


@pytest.mark.parametrize("name", ["withdraw_model", "release_model"])
@pytest.mark.parametrize("back", [True, False])
def test_what_a_region_that_is_back_holds_is_not_struck_off(house, retiring, monkeypatch, name, back):
    activities = DeploymentActivities(house.store, house.infrastructure)
    if back:  # it was lost as the activity began
        monkeypatch.setattr(activities, "_lost", lambda: frozenset({REGION}))

    def run():
        return ActivityEnvironment().run(getattr(activities, name), retiring)

    if back:
        with pytest.raises(Unavailable, match=REGION):
            run()
    else:
        run()

    with house.store.read() as unit:
        left = {"withdraw_model": unit.routes, "release_model": unit.deployments}[name](MODEL)
    assert bool(left) is back


def test_a_withdrawal_that_a_silent_region_blocks_tells_its_reason(house, retiring):
    house.infrastructure.cut(REGION)
    activities = DeploymentActivities(house.store, house.infrastructure)
    with pytest.raises(RegionUnreachable):
        ActivityEnvironment().run(activities.withdraw_model, retiring)

    change = house.change(retiring.change_id)
    assert (change.is_retried, change.reason) == (True, Reason.REGION_UNREACHABLE)
    assert change.message.startswith("withdraw model is tried again: ")
    assert REGION in change.message
    serving = house.condition(MODEL, ConditionType.SERVING)
    assert (serving.status, serving.reason) == ("False", Reason.PROGRESSING)
    assert serving.message == "retire retirement takes the model out of its gateways"

    house.infrastructure.mend(REGION)
    ActivityEnvironment().run(activities.withdraw_model, retiring)
    assert not house.change(retiring.change_id).is_retried


def freeze(house, change_id):
    """Let the retirement wait for a freeze."""
    with house.store.begin(MODEL) as unit:
        unit.update_change(change_id, state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen by sale")


@pytest.mark.parametrize("frozen", [True, False])
def test_users_of_a_model_whose_retirement_waits_for_a_freeze_are_sent_around_a_lost_region(house, retiring, frozen):
    if frozen:
        freeze(house, retiring.change_id)
    with house.store.begin() as unit:
        shares = (RouteShare(to="eu-west", generation=1, fraction=1.0),)
        unit.put_route(unit.route(MODEL, REGION).model_copy(update={"revision": 2, "shares": shares}))
        unit.add_drain("eu-west", disaster=True)

    sent = RegionFailover(house.store, house.infrastructure).send_around("eu-west")

    assert sent.tables == int(frozen)


@pytest.mark.parametrize(("routed", "frozen"), [(True, False), (False, True), (False, False)])
def test_a_takeover_completes_a_retirement_that_has_removed_the_routes(house, retiring, routed, frozen):
    if not routed:
        with house.store.begin(MODEL) as unit:
            unit.delete_routes(MODEL)
    if frozen:
        freeze(house, retiring.change_id)
    change = QueuedChange(id=retiring.change_id, kind=ChangeKind.RETIRE, sequence=1)
    asked = TakeOver(model=MODEL, change=change, reason=Reason.INTERNAL_ERROR, message="its run is gone")

    taken = ActivityEnvironment().run(TakeoverActivities(house.store, lambda _: False).take_over, asked)

    assert taken.withdrawn is not (routed or frozen)
