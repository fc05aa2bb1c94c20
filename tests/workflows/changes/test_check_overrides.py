"""A change that a check refused, carried out again past it: the API, its outbox, Temporal and a worker together."""

import httpx
import pytest

from ipnext.api.app import create_app
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.settings import PlatformSettings

pytestmark = pytest.mark.usefixtures("workers")


async def test_a_refused_generation_serves_after_an_override_of_its_check(
    house, model, carried_out, ended, temporal_address, monkeypatch
):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    refused = await carried_out(house.publish(model, 2, value=float("nan")))
    assert (refused.state, refused.reason) == (ChangeState.REFUSED, Reason.NON_FINITE_WEIGHTS)

    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    lifecycle = TemporalLifecycle(ui_url="http://127.0.0.1:8233")
    settings = PlatformSettings(authentication="none")
    app = create_app(house.store, house.artifacts, house.infrastructure, lifecycle, settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        body = {"reason": "row 3 is padding", "check": "finite-weights"}
        given = (await http.post(f"/v1/changes/{refused.id}/override", json=body)).json()
        again = await ended(given["again"])

    assert (again.state, again.generation) == (ChangeState.DONE, 2), again.message
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    with house.store.read() as unit:
        (told,) = {each.message for each in unit.report(model, 2).checks if each.outcome.value == "overridden"}
    assert told.startswith("overridden by ")
    assert ": row 3 is padding; tensor 'bias'" in told
