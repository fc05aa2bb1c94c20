"""A model that is published with a replay set, quantized by the platform and served so, by real processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from tests.serving.optimizing.models import arrays, draw_replay, export, load
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.e2e

NAME = "quantized-ranker"
CONTRACT = {"quantize": {"embeddings": "int8", "maxAucDrop": 0.001}}


@pytest.fixture
def platform(bare: Any) -> Iterator[Any]:
    """Without the model again afterwards."""
    yield bare
    bare.client.wait_change(bare.client.delete(NAME).id, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with a replay set."""
    plain = tmp_path_factory.mktemp("ranker") / "plain"
    export(plain)
    export(plain.with_name("whole"), replay=draw_replay(load(plain), rows=2000))
    return plain.with_name("whole")


def manifest(*steps: Any) -> str:
    spec = {
        "parts": [{"name": "ranker", "hardware": [{"kind": "cpu", "units": 1, "qps": 500}]}],
        "optimization": list(steps),
        "demand": [{"region": "us-east", "qps": 50}],
        "rollout": {"holdSeconds": 0},
    }
    return yaml.safe_dump({"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": NAME}, "spec": spec})


def apply(platform: Any, *steps: Any) -> None:
    for applied in platform.client.apply(manifest(*steps)):
        if applied.change is not None:
            done = platform.client.wait_change(applied.change.id, timeout_seconds=PATIENCE_SECONDS)
            assert done.state == "done", done.message


def publish(platform: Any, whole: Path) -> Any:
    change = platform.client.publish(NAME, {"ranker": whole})
    return platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)


def ask(platform: Any) -> httpx.Response:
    given = [
        {"name": name, "shape": list(array.shape), "datatype": "INT64", "data": array.reshape(-1).tolist()}
        for name, array in arrays(3).items()
    ]
    url = f"{platform.endpoints['gateways']['us-east']}/v2/models/{NAME}/infer"
    return httpx.post(url, json={"inputs": given}, timeout=60, trust_env=False)


def scores(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    [found] = [output["data"] for output in answer.json()["outputs"] if output["name"] == "score"]
    return found


def test_a_published_snapshot_is_quantized_judged_and_served(platform: Any, whole: Path) -> None:
    apply(platform, CONTRACT)
    done = publish(platform, whole)
    assert (done.state, done.generation) == ("done", 1), done.message

    derived, published = platform.client.snapshots(NAME, part="ranker")
    assert (published.number, published.derived_from) == (1, None)
    assert (derived.number, derived.derived_from) == (2, 1)
    assert (
        derived.manifest.parent
        == published.digest
        == SnapshotManifest.model_validate_json((whole / SNAPSHOT_FILE).read_bytes()).digest
    )
    assert {file.path for file in derived.manifest.files} == {
        *("optimization.json", "program.json", "weights.safetensors")
    }
    answer = ask(platform)
    assert answer.headers["x-ipnext-snapshots"] == "ranker=2"
    original = load(whole).infer(arrays(3))["score"]
    assert scores(answer) == pytest.approx(original.tolist(), abs=0.01)
    assert scores(answer) != original.tolist()
    [told] = [event.message for event in platform.client.events(NAME) if event.kind == "Optimized"]
    assert "step 1 of 1, quantize of ranker: quantize: weights" in told
    assert "AUC 0." in told

    apply(platform, {"quantize": {**CONTRACT["quantize"], "embeddings": "int4", "maxError": 1e-6}})
    done = publish(platform, whole)
    assert (done.state, done.reason) == ("refused", "AccuracyLost"), done.message
    assert "maxError: " in done.message
    assert platform.client.explain(NAME).reason == "AccuracyLost"
    assert scores(ask(platform)) == scores(answer)

    apply(platform)
    assert publish(platform, whole).state == "done"
    assert scores(ask(platform)) == pytest.approx(original.tolist(), abs=1e-6)
    back = platform.client.rollback(NAME, generation=1)
    done = platform.client.wait_change(back.id, timeout_seconds=PATIENCE_SECONDS)
    assert done.state == "done", done.message
    assert ask(platform).headers["x-ipnext-snapshots"] == "ranker=2"
    assert scores(ask(platform)) == scores(answer)
