"""Replanning on the whole platform: a changed fleet is followed by itself, and a killed planner is explained."""

import threading
from typing import Any

import psutil
import pytest

from ipnext.errors import Unavailable
from ipnext.model.lifecycle.replans.replan import ReplanState
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.e2e


def regions_of(platform: Any) -> set[str]:
    return {d.key.region for d in platform.client.model("pair").deployments if d.wanted}


def test_a_region_that_loses_its_supply_is_left_without_being_asked(platform: Any) -> None:
    client = platform.client
    fleet, leaving = client.fleet().spec, min(regions_of(platform))
    lost = tuple(i.model_copy(update={"units": 0}) if i.region == leaving else i for i in fleet.supply)

    client.put_fleet(fleet.model_copy(update={"supply": lost}))
    replan = client.replans(limit=1)[0]
    assert replan.trigger == "supply"
    ended = client.wait_replan(replan.id, PATIENCE_SECONDS)

    assert (ended.state, ended.models) == (ReplanState.ADOPTED, ("pair",))
    assert regions_of(platform) == set(fleet.regions) - {leaving}
    assert platform.ask(leaving).status_code == 200
    summary = client.plan_summary(ended.plan_id)
    assert summary.in_force
    assert summary.cpu_seconds > 0
    assert summary.peak_memory_bytes > 0

    client.put_fleet(fleet)
    client.wait_replan(client.replans(limit=1)[0].id, PATIENCE_SECONDS)


def test_a_planner_that_is_killed_again_and_again_is_explained_and_leaves_the_plan_in_force(platform: Any) -> None:
    client = platform.client
    before = [plan.id for plan in client.plans() if plan.in_force]
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            for process in platform.found("activities.planning.solver_process"):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(Unavailable, match="PlannerFailed: the planner was killed"):
            client.replan(wait=True, timeout_seconds=PATIENCE_SECONDS)
    finally:
        over.set()
        killer.join()

    newest = client.plans(limit=1)[0]
    assert (newest.outcome, newest.reason.value) == ("failed", "PlannerFailed")
    assert newest.message.endswith("the plan in force stays")
    assert [plan.id for plan in client.plans() if plan.in_force] == before
    assert platform.found("activities.planning.solver_process") == []
    assert client.replan(wait=True, timeout_seconds=PATIENCE_SECONDS).state in {ReplanState.KEPT, ReplanState.ADOPTED}
