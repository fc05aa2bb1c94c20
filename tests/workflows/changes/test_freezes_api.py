"""The API, its outbox, Temporal and a worker together: what is written over HTTP reaches the runs that wait."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest

from ipnext.api.app import create_app
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.settings import PlatformSettings

pytestmark = pytest.mark.usefixtures("workers")


@pytest.fixture
async def http(house, temporal_address, monkeypatch) -> AsyncIterator[httpx.AsyncClient]:
    """The API over the house, with the real engine behind it."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    lifecycle = TemporalLifecycle(ui_url="http://127.0.0.1:8233")
    app = create_app(
        house.store, house.artifacts, house.infrastructure, lifecycle, PlatformSettings(authentication="none")
    )
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest.fixture
def frozen(house, until):
    async def wait(change_id: str) -> None:
        await until(lambda: house.change(change_id).reason is Reason.FROZEN)

    return wait


def sale(model: str) -> dict[str, object]:
    window = {"start": datetime.now(UTC).replace(tzinfo=None, microsecond=0).isoformat(), "duration": "PT1H"}
    spec = {"reason": "the shop is full", "windows": [window], "scope": {"models": [model]}}
    return {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "sale"}, "spec": spec}


async def test_an_override_lets_one_change_through_and_the_end_of_the_freeze_the_next(
    house, model, http, frozen, ended
):
    house.apply(model)
    (await http.put("/v1/freezes/sale", json=sale(model))).raise_for_status()
    fix = house.publish(model, 1, change_id=f"{model}-fix")
    await frozen(fix.id)

    given = await http.post(
        f"/v1/changes/{fix.id}/override", json={"reason": "a fix"}, headers={"X-IPnext-User": "ann"}
    )

    assert given.json()["freezes"] == ["sale"]
    assert (await ended(fix)).state is ChangeState.DONE
    usual = house.publish(model, 2, change_id=f"{model}-usual")
    await frozen(usual.id)
    explained = (await http.get(f"/v1/models/{model}/explanation")).json()
    assert (explained["reason"], explained["ready"]) == ("Frozen", False)
    assert f"ipnext override {usual.id}" in explained["advice"]

    (await http.delete("/v1/freezes/sale?reason=sold%20out")).raise_for_status()

    assert (await ended(usual)).state is ChangeState.DONE
    assert (await http.get(f"/v1/models/{model}/explanation")).json()["reason"] == "Serving"
    entries = (await http.get("/v1/audit?limit=1000")).json()["items"]
    audit = [(e["operation"], e.get("said")) for e in entries if e["action"] in {"freezes.change", "models.override"}]
    assert audit == [
        ("DELETE /v1/freezes/{name}", None),
        ("POST /v1/changes/{change_id}/override", "ann"),
        ("PUT /v1/freezes/{name}", None),
    ]
