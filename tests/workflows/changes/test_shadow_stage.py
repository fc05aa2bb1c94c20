"""The stage `shadow` in the runs of changes: planned, kept in the store's tables, judged, and gone in the end."""

import asyncio

import pytest
from temporalio.testing import ActivityEnvironment

from activities.regions.reconciliation import ReconciliationActivities
from activities.stages.shadow import ShadowActivities
from ipnext import names
from ipnext.api.services.explanation import explanation_of
from ipnext.api.services.model_facts import model_facts
from ipnext.api.services.region_states import States
from ipnext.errors import FenceLost
from ipnext.model.gate.shadow import ShadowComparison
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.regions.reconciliation import RegionAsked
from ipnext.model.lifecycle.shadow import ShadowAsked
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.platform.denials import carry_out_denials
from ipnext.temporal import control
from tests.fleets import two_regions

REGIONS = ("us-east", "eu-west")


def staged(**settings):
    settings = {"share": 0.2, "minRequests": 10, "seconds": 600, **settings}
    return [{"stage": "shadow", "before": "transition", "settings": settings}]


def shadows(house, model):
    """Region -> generation of the shadow in the gateway's table."""
    tables = {region: house.infrastructure.table(model, region) for region in REGIONS}
    return {region: table.shadow.generation for region, table in tables.items() if table and table.shadow}


def stored_shadows(house, model):
    with house.store.read() as repository:
        return {table.region: table.shadow.generation for table in repository.routes(model) if table.shadow}


def processes(house, model):
    """(Part, region) -> processes of the shadow, as the store wants them."""
    with house.store.read() as repository:
        return {(d.key.part, d.key.region): dict(d.shadow) for d in repository.deployments(model) if d.shadow}


def leaves_nothing(house, model):
    """No table, replica set or record names a shadow, in the store or in a region."""
    with house.store.read() as repository:
        kept = repository.shadow(model)
    sets = [d for d in house.infrastructure.history[-1].deployments.values() if d.key.model == model and d.shadow]
    return (shadows(house, model), stored_shadows(house, model), processes(house, model), kept, sets) == (
        {},
        {},
        {},
        None,
        [],
    )


def explained(house, model):
    """The message of `ipnext explain`."""
    states = States({region: house.infrastructure.observe(region) for region in REGIONS})
    with house.store.read() as repository:
        return explanation_of(repository, model_facts(repository, model), states).message


def compare(house, model, region, **counts):
    """Let a region's router report a comparison of the shadow that it has now."""
    shadow = house.infrastructure.table(model, region).shadow
    found = ShadowComparison(model=model, generation=shadow.generation, seed=shadow.seed, **counts)
    house.infrastructure.compare(region, found)


async def reconciled(house, region):
    """Run a pass of the reconciler over a region."""
    activities, environment = ReconciliationActivities(house.store, house.infrastructure), ActivityEnvironment()
    await asyncio.to_thread(environment.run, activities.record_repairs, Done())
    return await asyncio.to_thread(environment.run, activities.reconcile_region, RegionAsked(region=region))


def events(house, model, kind):
    with house.store.read() as repository:
        return [event.message for event in repository.events(model, limit=100) if event.kind == kind]


@pytest.fixture
def shadowed(house, model, carried_out, submit, until):
    """A model with a generation that serves, and a publish whose shadow is compared."""

    async def begin(**settings):
        house.apply(model, lifecycle=staged(**settings))
        assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
        change = house.publish(model, 2)
        await submit(change)
        await until(lambda: len(shadows(house, model)) == 2)
        return change

    return begin


@pytest.fixture
def first_workers(serving):
    """Workers that a test starts and ends by itself."""
    return serving


@pytest.fixture(autouse=True)
async def working(request, serving):
    """Workers for as long as the test takes."""
    if "first_workers" in request.fixturenames:
        yield
        return
    async with serving():
        yield


async def test_a_shadow_that_passes_lets_its_change_go_on(house, model, shadowed, ended, until):
    change = await shadowed()
    assert stored_shadows(house, model) == {"us-east": 2, "eu-west": 2}
    assert processes(house, model) == {
        (part, region): {2: 1} for part in ("sparse", "dense") for region in ("us-east", "eu-west")
    }
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    (planned,) = events(house, model, "ShadowPlanned")
    assert "takes 2 units of eu-west/cpu, 2 units of us-east/cpu (4.2 $/h)" in planned
    compare(house, model, "us-east", chosen=8, compared=8)
    told = "generation 2: stage shadow: comparing: 8 answers of generation 2 compared, 0 failed and 0 mismatched"
    await until(lambda: told in explained(house, model))
    compare(house, model, "eu-west", chosen=4, compared=4)
    assert (await ended(change)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    assert leaves_nothing(house, model)


async def test_a_shadow_that_fails_refuses_its_change_with_figures(house, model, shadowed, ended):
    change = await shadowed()
    compare(house, model, "us-east", chosen=12, compared=6, failures={"Overloaded": 6})
    found = await ended(change)
    assert (found.state, found.reason) == (ChangeState.REFUSED, Reason.STAGE_REFUSED)
    told = "6 failed (Overloaded 6) and 0 mismatched of 12 requests: 50.0%, allowed 1.0%"
    assert found.message == f"stage shadow: {told}"
    assert told in house.condition(model, ConditionType.VALIDATED).message
    assert any(told in text for text in events(house, model, "StageEnded"))
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert not any(2 in generations for generations in house.held(model).values())
    assert leaves_nothing(house, model)


@pytest.mark.parametrize(("on_too_few", "state"), [("fail", ChangeState.REFUSED), ("pass", ChangeState.DONE)])
async def test_too_few_requests_end_as_the_settings_say(house, model, shadowed, ended, on_too_few, state):
    change = await shadowed(seconds=3, onTooFew=on_too_few)
    compare(house, model, "us-east", chosen=3, compared=3)
    found = await ended(change)
    assert found.state is state, found.message
    if state is ChangeState.REFUSED:
        assert "no verdict within 3 s: 3 answers of generation 2 compared" in found.message
    assert leaves_nothing(house, model)


async def test_nothing_is_compared_while_nothing_else_serves(house, model, carried_out):
    house.apply(model, lifecycle=staged())
    assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
    house.apply(model, lifecycle=staged(), priority=2.0)
    assert (await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-a"))).state is ChangeState.DONE
    assert events(house, model, "ShadowPlanned") == []


async def test_an_abort_ends_the_shadow(house, model, shadowed, ended, client):
    change = await shadowed()
    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna", reason="enough"))
    assert (await ended(change)).reason is Reason.ABORTED
    assert leaves_nothing(house, model)


async def test_a_terminated_run_leaves_no_shadow(house, model, shadowed, ended, client):
    change = await shadowed()
    await client.get_workflow_handle(names.lifecycle_workflow_id(model, change.id)).terminate()
    assert (await ended(change)).state is ChangeState.REFUSED
    assert leaves_nothing(house, model)


async def test_a_region_that_is_away_gets_rid_of_the_shadow_once_it_answers(house, model, shadowed, ended):
    change = await shadowed()
    house.infrastructure.cut("eu-west")
    compare(house, model, "us-east", chosen=12, compared=6, failures={"Overloaded": 6})
    assert (await ended(change)).state is ChangeState.REFUSED
    assert stored_shadows(house, model) == {}
    assert shadows(house, model) == {"eu-west": 2}
    house.infrastructure.mend("eu-west")
    await reconciled(house, "eu-west")
    assert leaves_nothing(house, model)


async def test_the_reconciler_keeps_a_shadow_while_its_change_runs(house, model, shadowed, ended):
    change = await shadowed()
    house.infrastructure.unroute(model, "us-east")
    for key in [d.key for d in house.infrastructure.history[-1].deployments.values() if d.key.region == "us-east"]:
        house.infrastructure.delete(key)
    found = await reconciled(house, "us-east")
    assert shadows(house, model) == {"us-east": 2, "eu-west": 2}
    assert found.routed == 1
    assert (await reconciled(house, "us-east")).applied == 0
    with house.store.read() as repository:
        assert [change.id for change in repository.open_changes(model)] == [change.id], "nothing is repaired"


async def test_a_shadow_of_a_change_that_ended_unseen_ends_with_the_next_pass(house, model, shadowed, ended, client):
    change = await shadowed()
    with house.store.read() as repository:
        kept = repository.stored_shadow(model)
    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna", reason="enough"))
    await ended(change)
    with house.store.begin(model) as repository:
        repository.put_shadow(kept.shadow, kept.seen)
    await reconciled(house, "us-east")
    assert leaves_nothing(house, model)


async def test_a_denied_candidate_is_refused_during_its_shadow(house, model, shadowed, ended):
    change = await shadowed()
    with house.store.begin() as repository:
        files = {each.path: each.sha256 for each in repository.snapshot(model, "dense", 2).manifest.files}
        repository.put_denial(files["weights.safetensors"], reason="leaked", denied_by="anna")
    carry_out_denials(house.store)
    found = await ended(change)
    assert (found.state, found.message) == (ChangeState.REFUSED, "stage shadow: snapshot 2 of 'dense' is denied")
    assert leaves_nothing(house, model)


async def test_a_change_waits_for_the_supply_of_its_shadow_within_its_patience(house, model, carried_out):
    house.apply_fleet(two_regions(9, 4))
    house.apply(model, lifecycle=staged())
    assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
    house.apply(model, lifecycle=staged(), rollout={"waitSeconds": 1})
    found = await carried_out(house.publish(model, 2))
    assert found.state is ChangeState.REFUSED
    assert found.message.startswith("stage shadow: no verdict within 1 s: it takes 2 units of eu-west/cpu")
    assert "2 units of eu-west/cpu are lacking" in found.message
    assert leaves_nothing(house, model)


async def test_a_shadow_beyond_the_models_budget_is_refused_before_it_starts(house, model, carried_out):
    house.apply(model, lifecycle=staged())
    assert (await carried_out(house.publish(model, 1))).state is ChangeState.DONE
    with house.store.read() as repository:
        cost = repository.placement(model).cost_per_hour
    house.apply(model, lifecycle=staged(), budgetPerHour=cost + 1)
    found = await carried_out(house.publish(model, 2))
    assert found.state is ChangeState.REFUSED
    assert (
        f"it takes 2 units of eu-west/cpu, 2 units of us-east/cpu (4.2 $/h), and the model's budget is {cost + 1:.9g}"
        in found.message
    )
    assert events(house, model, "ShadowPlanned") == []


async def test_shadows_of_an_owners_other_models_count_in_its_budget(house, model, shadowed, carried_out):
    other = f"{model}-b"
    house.apply(other, lifecycle=staged())
    assert (await carried_out(house.publish(other, 1))).state is ChangeState.DONE
    await shadowed()
    with house.store.read() as repository:
        spent = sum(repository.placement(name).cost_per_hour for name in (model, other))
    budget = spent + 2 * 4.2 - 1
    house.apply_fleet(two_regions() + f"  owners: [{{owner: default, budgetPerHour: {budget:.9g}}}]\n")
    found = await carried_out(house.publish(other, 2))
    assert found.state is ChangeState.REFUSED
    assert f"the budget of owner 'default' is {budget:.9g} $/h, of which {spent + 4.2:.4g} are spent" in found.message
    assert events(house, other, "ShadowPlanned") == []


async def test_a_newer_publish_ends_the_shadow_and_brings_its_own(house, model, shadowed, submit, ended, until):
    change = await shadowed()
    newer = house.publish(model, 3)
    await submit(newer)
    assert (await ended(change)).state is ChangeState.SUPERSEDED
    await until(lambda: shadows(house, model) == {"us-east": 3, "eu-west": 3})
    assert {tuple(found) for found in processes(house, model).values()} == {(3,)}
    compare(house, model, "us-east", chosen=20, compared=20)
    assert (await ended(newer)).state is ChangeState.DONE
    assert leaves_nothing(house, model)


async def test_a_shadow_outlives_the_workers(house, model, first_workers, shadowed, ended):
    async with first_workers():
        change = await shadowed()
    compare(house, model, "us-east", chosen=20, compared=20)
    assert shadows(house, model) == stored_shadows(house, model) == {"us-east": 2, "eu-west": 2}
    async with first_workers():
        assert (await ended(change)).state is ChangeState.DONE
    assert leaves_nothing(house, model)


async def test_a_repair_that_passes_the_change_keeps_its_shadow(house, model, shadowed, carried_out, ended):
    change = await shadowed()
    repair = house.ask(model, ChangeKind.REPAIR, f"{model}-r", generation=1)
    assert (await carried_out(repair)).state is ChangeState.DONE
    assert house.change(change.id).state is ChangeState.RUNNING
    assert shadows(house, model) == stored_shadows(house, model) == {"us-east": 2, "eu-west": 2}
    assert {tuple(found) for found in processes(house, model).values()} == {(2,)}
    compare(house, model, "us-east", chosen=20, compared=20)
    assert (await ended(change)).state is ChangeState.DONE
    assert leaves_nothing(house, model)


async def test_a_failover_keeps_the_shadow_in_the_regions_that_are_left(house, model, shadowed, ended, drains, client):
    change = await shadowed()
    house.infrastructure.cut("eu-west")
    await drains.ask("eu-west", disaster=True)
    await drains.reaches(DrainState.DRAINED, region="eu-west")
    with house.store.read() as repository:
        assert {share.to for table in repository.routes(model) for share in table.shares} == {"us-east"}
    assert house.shares(model)["us-east"] == {1: 1.0}
    assert house.infrastructure.table(model, "us-east").shadow.generation == 2
    assert stored_shadows(house, model) == {"us-east": 2}
    assert {region for _, region in processes(house, model)} == {"us-east"}
    await control(client, model, ControlAction.ABORT, ControlAsked(by="anna", reason="enough"))
    assert (await ended(change)).reason is Reason.ABORTED
    assert stored_shadows(house, model) == processes(house, model) == {}
    assert house.infrastructure.table(model, "us-east").shadow is None


@pytest.mark.parametrize(("on_too_few", "state"), [("fail", ChangeState.REFUSED), ("pass", ChangeState.DONE)])
async def test_a_shadow_gives_its_units_back_to_a_model_that_a_later_plan_gives_them(
    house, model, shadowed, ended, submit, carried_out, on_too_few, state
):
    house.apply_fleet(two_regions(14, 6))
    other = f"{model}-b"
    house.apply(other, demand=[{"region": "us-east", "qps": 100}])
    assert (await carried_out(house.publish(other, 1))).state is ChangeState.DONE
    change = await shadowed(onTooFew=on_too_few)
    house.apply(other, demand=[{"region": "us-east", "qps": 300}])
    applied = house.ask(other, ChangeKind.APPLY, f"{other}-a")
    await submit(applied)
    assert (await ended(applied)).state is ChangeState.DONE
    assert (await ended(change)).state is state
    told = "no verdict: other models need units that the shadow takes: 2 units of us-east/cpu"
    assert any(told in text for text in events(house, model, "StageEnded"))
    assert leaves_nothing(house, model)


@pytest.mark.parametrize("short", [True, False])
async def test_a_shadow_ends_once_a_later_budget_has_no_room_for_it(house, model, shadowed, ended, short):
    change = await shadowed()
    with house.store.read() as repository:
        spent = repository.placement(model).cost_per_hour
    budget = spent + 4.2 - 0.1 * short
    house.apply_fleet(two_regions() + f"  owners: [{{owner: default, budgetPerHour: {budget:.9g}}}]\n")
    if not short:
        compare(house, model, "us-east", chosen=20, compared=20)
        assert (await ended(change)).state is ChangeState.DONE
        return
    assert (await ended(change)).state is ChangeState.REFUSED
    told = "\n".join(events(house, model, "StageEnded"))
    assert "no verdict: the shadow takes 2 units of eu-west/cpu, 2 units of us-east/cpu (4.2 $/h), and " in told
    assert f"the budget of owner 'default' is {budget:.9g} $/h, of which {spent:.4g} are spent" in told
    assert leaves_nothing(house, model)


async def test_a_late_look_brings_an_ended_shadow_about_no_more(house, model, first_workers, shadowed):
    """The stage has passed and its change continues: the look of a slow attempt has the fence of that change."""
    async with first_workers():
        change = await shadowed()
    with house.store.read() as repository:
        kept = repository.stored_shadow(model)
    late = ShadowActivities(house.store, house.infrastructure)
    asked = ShadowAsked(model=model, change_id=change.id, kind=change.kind, generation=2)
    await asyncio.to_thread(ActivityEnvironment().run, late.end_shadow, asked)
    for write in (late._store_sets, late._store_shadow, lambda shadow: late._apply(shadow, shadow.sets)):
        with pytest.raises(FenceLost, match="has ended; a late look at it writes nothing more"):
            await asyncio.to_thread(ActivityEnvironment().run, write, kept.shadow)
    assert house.change(change.id).state is ChangeState.RUNNING
    assert leaves_nothing(house, model)
