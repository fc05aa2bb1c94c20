"""Replanning the fleet: worth it or not, through the entities, and never losing the plan in force."""

import pytest

from ipnext.errors import Infeasible, NotFound
from ipnext.model.lifecycle import ChangeKind, ChangeState, ReplanInput, ReplanResult
from ipnext.model.status import Reason
from ipnext.temporal import replan_outcome, start_replan

pytestmark = pytest.mark.usefixtures("workers")

DEMAND = {"us-east": 350.0, "eu-west": 180.0}

WITHOUT_EUROPE = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east, eu-west]
  rttMs: [[1, 76], [76, 1]]
  hardware: [cpu]
  supply:
    - {region: us-east, hardware: cpu, units: 40, unitCost: 1.0}
"""


async def replanned(client, **more) -> ReplanResult:
    workflow_id, run_id = await start_replan(client, ReplanInput(**more))
    handle = client.get_workflow_handle(workflow_id, run_id=run_id, result_type=ReplanResult)
    return await handle.result()


@pytest.fixture
async def two_models(house, model, carried_out):
    """Two models that serve; demand at both ends with a tolerance of 200 ms keeps each near its users."""
    names = (model, f"{model}-b")
    for name in names:
        house.apply(name)
        await carried_out(house.publish(name, 1))
    return names


async def test_a_plan_that_is_as_good_as_it_gets_stays_in_force(house, client, two_models):
    with house.store.read() as repository:
        before = repository.plan_in_force().id

    result = await replanned(client)

    assert (result.adopted, result.models) == (False, ())
    with house.store.read() as repository:
        assert repository.plan_in_force().id == before


async def test_lost_supply_moves_every_model_to_where_supply_is(house, kit, client, two_models):
    house.apply_fleet(WITHOUT_EUROPE)

    result = await replanned(client, trigger="supply")

    assert result.adopted
    assert set(result.models) == set(two_models)
    with house.store.read() as repository:
        assert repository.plan_in_force().id == result.plan_id
        for name in two_models:
            assert {d.key.region for d in repository.deployments(name)} == {"us-east"}
            assert repository.changes(name, limit=1)[0].state is ChangeState.DONE
    for name in two_models:
        kit.check_floor(house.infrastructure, name, DEMAND)
        assert house.condition(name).status == "True"


async def test_the_outcome_of_a_replan_can_be_asked_for(client, two_models):
    workflow_id, run_id = await start_replan(client, ReplanInput())
    result = await client.get_workflow_handle(workflow_id, run_id=run_id, result_type=ReplanResult).result()

    assert await replan_outcome(client, workflow_id, run_id) == result
    with pytest.raises(NotFound, match="replan/none"):
        await replan_outcome(client, "replan/none", run_id)


async def test_a_planner_that_fails_leaves_the_plan_in_force_and_says_why(house, client, two_models, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        msg = "supply us-east/cpu cannot hold it"
        raise Infeasible(msg, rules=["supply us-east/cpu"])

    monkeypatch.setattr("activities.solving.solve", fail)
    with house.store.read() as repository:
        before = repository.plan_in_force().id

    result = await replanned(client)

    assert (result.adopted, result.reason) == (False, Reason.PLANNER_INFEASIBLE)
    with house.store.read() as repository:
        assert repository.plan_in_force().id == before
        assert "supply us-east/cpu cannot hold it" in repository.events(limit=1)[0].message


async def test_a_move_to_a_plan_that_is_no_longer_in_force_is_superseded(house, model, carried_out):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    with house.store.read() as repository:
        old = repository.plan_in_force().id
    house.apply(model, demand=[{"region": "us-east", "qps": 100}])
    await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))

    change = await carried_out(house.ask(model, ChangeKind.MOVE, f"{model}-move", plan_id=old))

    assert (change.state, change.reason) == (ChangeState.SUPERSEDED, Reason.SUPERSEDED)
