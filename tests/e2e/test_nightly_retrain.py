"""examples/nightly-retrain: a workflow with the plain Temporal SDK that composes modules of a running platform."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from temporalio.client import Client as Temporal

from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples" / "nightly-retrain"
NAME = "nightly-ranker"
ASK_SECONDS = 0.05


@pytest.fixture
def platform(bare: Any) -> Iterator[Any]:
    """Without the model again afterwards."""
    yield bare
    bare.client.wait_change(bare.client.delete(NAME).id, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield __import__("nightly_retrain.worker", fromlist=["worker"])
    for name in [name for name in sys.modules if name.startswith("nightly_retrain")]:
        del sys.modules[name]


@pytest.fixture
def day(tmp_path: Path) -> Callable[[str], None]:
    """Write the complete data of a day."""

    def write(name: str) -> None:
        place = tmp_path / "days" / name
        place.mkdir(parents=True)
        random = np.random.default_rng(int(name[-1]))
        features = random.standard_normal((500, 4)).astype(np.float32)
        clicked = (features[:, 0] + random.standard_normal(500) > 0).astype(np.float32)
        np.savez(place / "rows.npz", features=features, clicked=clicked)
        (place / "DONE").touch()

    return write


async def ask(platform: Any) -> None:
    """Send requests until it is cancelled."""
    url = f"{platform.endpoints['gateways']['us-east']}/v2/models/{NAME}/infer"
    random = np.random.default_rng(7)  # equal requests would all be in the shadow's share, or none of them
    rows = {"name": "features", "shape": [1, 4], "datatype": "FP32"}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        while True:
            await client.post(url, json={"inputs": [rows | {"data": random.standard_normal(4).tolist()}]})
            await asyncio.sleep(ASK_SECONDS)


async def test_each_new_day_is_trained_published_judged_and_promoted(
    platform: Any, package: Any, day: Callable[[str], None], tmp_path: Path
) -> None:
    await asyncio.to_thread(platform.client.apply, (EXAMPLE / "model.yaml").read_text())
    temporal = await Temporal.connect(platform.endpoints["temporal_address"])
    order = package.NightlyRetrain.run.__annotations__["order"](
        model=NAME,
        part="ranker",
        data=str(tmp_path / "days"),
        snapshots=str(tmp_path / "snapshots"),
        canary_requests=5,
    )

    async def night() -> Any:
        started = temporal.execute_workflow(
            "nightly_retrain", order, id="nightly-retrain", task_queue=package.QUEUE, result_type=dict
        )
        return await asyncio.wait_for(started, PATIENCE_SECONDS)

    async with package.worker_of(temporal, platform.client):
        assert (await night())["state"] == "nothing_new"
        day("2026-11-01")
        first = await night()
        assert (first["day"], first["state"]) == ("2026-11-01", "done"), first
        assert (await night())["state"] == "nothing_new"
        day("2026-11-02")
        asking = asyncio.create_task(ask(platform))
        second = await night()
        asking.cancel()
        assert (second["day"], second["state"]) == ("2026-11-02", "done"), second
    model = await asyncio.to_thread(platform.client.model, NAME)
    assert model.status.serving_generation == 2
    events = await asyncio.to_thread(platform.client.events, NAME)
    assert [event.kind for event in events].count("ShadowPlanned") == 1, "the first publish has nothing to compare with"
    report = await asyncio.to_thread(platform.client.report, NAME, 2)
    (shadow,) = [check for check in report.checks if check.check == "stage.shadow"]
    assert shadow.passed, shadow.message
    assert shadow.evidence["compared"] >= 20
