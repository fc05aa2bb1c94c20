"""A model that is published whole, cut by the platform and served in parts, by real processes."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml

from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from serving.engines.base import find_engine
from serving.export import export_model
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.e2e

EXAMPLE = Path(__file__).parents[2] / "examples" / "split-ranker"
MANIFEST = (EXAMPLE / "model.yaml").read_text()
REQUEST = json.loads((EXAMPLE / "request.json").read_text())
SEED = 7
FIRST = {"cross", "dense-s1", "dense-s3", "tables-0", "tables-1"}
SECOND = {"cross", "dense-s0", "dense-s2"}


@pytest.fixture
def platform(bare: Any) -> Iterator[Any]:
    """Without the model again afterwards."""
    yield bare
    bare.client.wait_change(bare.client.delete("split-ranker").id, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def training() -> Any:
    """The example's training code."""
    spec = importlib.util.spec_from_file_location("ipnext_example_split_ranker", EXAMPLE / "publish.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def whole(training: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uncut snapshot."""
    torch.manual_seed(SEED)
    directory = tmp_path_factory.mktemp("ranker") / "whole"
    export_model(training.Ranker(), training.inputs(4), directory)
    return directory


@pytest.fixture(scope="module")
def expected(whole: Path) -> np.ndarray:
    """What the uncut snapshot answers to the example's request."""
    manifest = SnapshotManifest.model_validate_json((whole / SNAPSHOT_FILE).read_bytes())
    part = find_engine(manifest.engine).load(whole, manifest, {})
    types = {"INT64": np.int64, "FP32": np.float32}
    tensors = {t["name"]: np.array(t["data"], types[t["datatype"]]).reshape(t["shape"]) for t in REQUEST["inputs"]}
    return part.infer(tensors)["score"]


def cut_otherwise(**split: Any) -> str:
    document = yaml.safe_load(MANIFEST)
    document["spec"]["split"] = split
    return yaml.safe_dump(document)


def apply(platform: Any, manifest: str) -> None:
    for applied in platform.client.apply(manifest):
        if applied.change is not None:
            done = platform.client.wait_change(applied.change.id, timeout_seconds=PATIENCE_SECONDS)
            assert done.state == "done", done.message


def publish(platform: Any, whole: Path) -> Any:
    change = platform.client.publish("split-ranker", {"whole": whole})
    return platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)


def run_example(platform: Any) -> None:
    """As a person runs it."""
    environment = {**os.environ, "IPNEXT_API_URL": platform.endpoints["api"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE / "publish.py"), str(SEED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "generation 1: done" in done.stdout, f"{done.stdout}\n{done.stderr}"


def ask(platform: Any, region: str) -> httpx.Response:
    url = f"{platform.endpoints['gateways'][region]}/v2/models/split-ranker/infer"
    return httpx.post(url, json=REQUEST, timeout=60, trust_env=False)


def proof(answer: httpx.Response) -> Mapping[str, str]:
    return dict(item.split("=") for item in answer.headers["x-ipnext-snapshots"].split(","))


def bits(answer: httpx.Response) -> bytes:
    [score] = [t for t in answer.json()["outputs"] if t["name"] == "score"]
    return np.array(score["data"], np.float32).tobytes()


def check(platform: Any, expected: np.ndarray, *, generation: int, segments: set[str]) -> None:
    """Both regions answer with the generation, by all of its segments, with the bits of the uncut model."""
    for region in platform.endpoints["gateways"]:
        answer = ask(platform, region)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ipnext-generation"] == str(generation)
        assert set(proof(answer)) == segments
        assert bits(answer) == expected.tobytes()


@contextmanager
def steady_load(platform: Any, expected: np.ndarray, layouts: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Asks both gateways all the time; yields what went wrong: an error, other bits, or segments of two layouts."""
    wrong: list[str] = []
    stop = threading.Event()

    def fault(region: str) -> str | None:
        try:
            answer = ask(platform, region)
        except httpx.HTTPError as error:
            return repr(error)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:200]}"
        generation, segments = answer.headers["x-ipnext-generation"], set(proof(answer))
        if segments != layouts[generation]:
            return f"generation {generation} answered by {sorted(segments)}"
        return None if bits(answer) == expected.tobytes() else f"other bits from generation {generation}"

    def ask_on(region: str) -> None:
        while not stop.wait(0.1):
            found = fault(region)
            if found is not None:
                wrong.append(f"{region}: {found}")

    threads = [threading.Thread(target=ask_on, args=(region,)) for region in platform.endpoints["gateways"]]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_each_generation_is_served_in_the_parts_that_it_was_cut_into(
    platform: Any, whole: Path, expected: np.ndarray
) -> None:
    apply(platform, MANIFEST)
    run_example(platform)
    check(platform, expected, generation=1, segments=FIRST)

    layout = platform.client.generations("split-ranker")[0].layout
    assert [part.name for part in layout.parts] == ["tables-0", "tables-1", "cross", "dense"]
    hosts = {d.key.part: d.wanted for d in platform.client.model("split-ranker").deployments}
    assert set(hosts) == {"tables-0", "tables-1", "cross", "dense"}, "a host of dense holds both of its segments"

    apply(platform, cut_otherwise(parts=[{"name": "cross", "modules": ["cross"]}], default="dense"))
    with steady_load(platform, expected, {"1": FIRST, "2": SECOND}) as wrong:
        done = publish(platform, whole)
        assert (done.state, done.generation) == ("done", 2), done.message
        check(platform, expected, generation=2, segments=SECOND)
        back = platform.client.rollback("split-ranker", generation=1)
        done = platform.client.wait_change(back.id, timeout_seconds=PATIENCE_SECONDS)
        assert done.state == "done", done.message
    assert wrong == []
    check(platform, expected, generation=1, segments=FIRST)
    assert platform.client.model("split-ranker").status.ready

    apply(platform, cut_otherwise(parts=[{"name": "cross", "modules": ["kross"]}], default="dense"))
    done = publish(platform, whole)
    assert (done.state, done.reason) == ("refused", "SplitRefused"), done.message
    explanation = platform.client.explain("split-ranker")
    assert explanation.reason == "SplitRefused"
    assert "'kross'" in explanation.message
    check(platform, expected, generation=1, segments=FIRST)
