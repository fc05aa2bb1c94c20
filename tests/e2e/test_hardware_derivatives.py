"""A model that is quantised on one hardware kind only, by real processes: each kind answers with its own snapshot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ipnext.model.fleet import FleetManifest
from tests.serving.optimizing.models import arrays, draw_replay, export, load
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

NAME, SPLIT = "two-kinds", "two-kinds-split"
EXACT, INT8 = "ranker=1", "ranker=2"
TABLES = {"name": "tables", "modules": ["tables.*", "bag"]}


def manifest(name: str, **more: Any) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {
                "parts": [
                    {
                        "name": "ranker",
                        "hardware": [{"kind": kind, "units": 1, "qps": 50} for kind in ("cpu", "cpu-small")],
                    }
                ],
                "optimization": [{"quantize": {"embeddings": "int8", "maxAucDrop": 0.001, "hardware": ["cpu-small"]}}],
                "demand": [{"region": "us-east", "qps": 80}],
                "rollout": {"holdSeconds": 0},
                **more,
            },
        }
    )


@pytest.fixture
def platform(bare: Any) -> Iterator[Any]:
    """With one cheap unit of another hardware kind in us-east for the time of the test."""
    before = bare.client.fleet().spec
    cheap = {"region": "us-east", "hardware": "cpu-small", "units": 1, "unit_cost": 0.1}
    small = before.supply[0].model_copy(update=cheap)
    spec = before.model_copy(update={"hardware": (*before.hardware, "cpu-small"), "supply": (*before.supply, small)})
    bare.client.apply(FleetManifest(api_version="ipnext/v1", kind="Fleet", spec=spec))
    yield bare
    for name in {NAME, SPLIT} & {view.manifest.metadata.name for view in bare.client.models()}:
        bare.client.wait_change(bare.client.delete(name).id, timeout_seconds=PATIENCE_SECONDS)
    bare.client.apply(FleetManifest(api_version="ipnext/v1", kind="Fleet", spec=before))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with a replay set."""
    plain = tmp_path_factory.mktemp("two-kinds") / "plain"
    export(plain)
    export(plain.with_name("whole"), replay=draw_replay(load(plain), rows=2000))
    return plain.with_name("whole")


def ask(platform: Any, model: str) -> tuple[str, tuple[float, ...]]:
    """Return the snapshot that answered by the header, and the scores."""
    given = [
        {"name": name, "shape": list(array.shape), "datatype": "INT64", "data": array.reshape(-1).tolist()}
        for name, array in arrays(3).items()
    ]
    url = f"{platform.endpoints['gateways']['us-east']}/v2/models/{model}/infer"
    answer = httpx.post(url, json={"inputs": given}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ipnext-snapshots"] == answer.json()["parameters"]["snapshots"]
    [scores] = [output["data"] for output in answer.json()["outputs"] if output["name"] == "score"]
    return answer.headers["x-ipnext-snapshots"], tuple(scores)


def answers(platform: Any, model: str) -> dict[str, set[tuple[float, ...]]]:
    """Ask until both kinds have answered; return the scores of each snapshot."""
    found: dict[str, set[tuple[float, ...]]] = {}

    def both() -> bool:
        named, scores = ask(platform, model)
        found.setdefault(named, set()).add(scores)
        return len(found) == 2

    until(both)
    return found


def placed(client: Any, model: str, part: str) -> dict[int, set[str]]:
    """Map the first two snapshots of a part to the kinds with replicas that load them."""
    found = {number: client.snapshot_lineage(model, part, number).placements for number in (1, 2)}
    return {number: {each.hardware for each in own if each.replicas} for number, own in found.items()}


def test_each_hardware_kind_answers_with_its_derivative_until_one_is_denied(platform: Any, whole: Path) -> None:
    client = platform.client
    client.apply(manifest(NAME))
    done = client.wait_change(client.publish(NAME, {"ranker": whole}).id, timeout_seconds=PATIENCE_SECONDS)
    assert (done.state, done.generation) == ("done", 1), done.message

    original = load(whole).infer(arrays(3))["score"].tolist()
    found = answers(platform, NAME)
    assert found.keys() == {EXACT, INT8}
    [exact], [int8] = found[EXACT], found[INT8]
    assert list(exact) == pytest.approx(original, abs=1e-6)
    assert list(int8) == pytest.approx(original, abs=0.01)
    assert int8 != exact

    derived, _ = client.snapshots(NAME, part="ranker")
    assert (derived.derived_from, derived.hardware) == (1, ("cpu-small",))
    assert placed(client, NAME, "ranker") == {1: {"cpu"}, 2: {"cpu-small"}}

    client.deny(derived.digest, "it ranks badly")
    [generation] = client.generations(NAME)
    assert generation.by_hardware == {"cpu-small": {"ranker": 2}}
    denied = client.denial(derived.digest)
    assert [(one.model, one.number) for one in denied.snapshots] == [(NAME, 2)]
    client.undeny(derived.digest)


def test_hosts_of_each_kind_answer_with_their_cut_of_a_model_that_is_split(platform: Any, whole: Path) -> None:
    client = platform.client
    dense = {"name": "dense", "modules": ["top"], "hardware": ["cpu"]}
    client.apply(manifest(SPLIT, split={"parts": [TABLES, dense], "default": "dense"}))
    done = client.wait_change(client.publish(SPLIT, {"ranker": whole}).id, timeout_seconds=PATIENCE_SECONDS)
    assert (done.state, done.generation) == ("done", 1), done.message

    original = load(whole).infer(arrays(3))["score"].tolist()
    found = answers(platform, SPLIT)
    assert found.keys() == {"dense=1,tables=1", "dense=1,tables=2"}
    [exact], [int8] = found["dense=1,tables=1"], found["dense=1,tables=2"]
    assert list(exact) == pytest.approx(original, abs=1e-6)
    assert list(int8) == pytest.approx(original, abs=0.01)
    assert int8 != exact
    assert placed(client, SPLIT, "tables") == {1: {"cpu"}, 2: {"cpu-small"}}
