"""A region that comes back while a model is retired was told what the store had of it: nothing is struck off before it is asked again."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from ipnext.errors import Unavailable
from ipnext.model.deployment import Deployment, DeploymentKey, RouteShare, RouteTable
from ipnext.model.lifecycle import ChangeKind, ChangeState, StageInput

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
