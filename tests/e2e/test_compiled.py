"""Compiled snapshots through the whole platform: served where the manifest asks for native code, refused elsewhere."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from ipnext.errors import ArtifactDigestMismatch
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.names import LIBRARY_FILE
from serving.engines.base import find_engine
from serving.export import export_model
from tests.e2e.conftest import ipnext
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

WIDTH = 8
TOLERANCE = 1e-5
MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: small, owner: tests}
spec:
  parts:
    - {name: dense, hardware: [{kind: cpu, units: 1, qps: 60}], settings: SETTINGS}
  demand: [{region: us-east, qps: 50}, {region: eu-west, qps: 50}]
  latencyToleranceMs: 120
  rollout: {canary: 0.5, maxStep: 0.5, deadlineSeconds: 180}
"""
ASKED = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)


class Small(nn.Module):
    """x [B, WIDTH] -> score [B]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"score": torch.sigmoid(self.layers(x)).squeeze(1)}


class Snapshots:
    """`one` and `two` are of one program with different weights; both are compiled too, to one library, and signed."""

    def __init__(self, root: Path, key: Path) -> None:
        self.root = root
        for seed, name in enumerate(("one", "two")):
            export_model(Small(seed), {"x": torch.zeros(2, WIDTH)}, root / name)
            words = (str(root / name), "--out", str(self.compiled(name)), "--cache", str(root / "c"))
            made = ipnext("compile", *words)
            assert made.exit_code == 0, made.output
            made = ipnext("sign", str(self.compiled(name)), "--key", str(key))
            assert made.exit_code == 0, made.output

    def compiled(self, name: str) -> Path:
        return self.root / f"{name}-compiled"

    @property
    def library(self) -> str:
        """SHA-256 of the library."""
        manifest = SnapshotManifest.model_validate_json((self.compiled("one") / SNAPSHOT_FILE).read_bytes())
        return next(file.sha256 for file in manifest.files if file.path == LIBRARY_FILE)

    def expected(self, name: str) -> np.ndarray:
        """What the source answers, not compiled."""
        manifest = SnapshotManifest.model_validate_json((self.root / name / SNAPSHOT_FILE).read_bytes())
        return find_engine(manifest.engine).load(self.root / name, manifest, {}).infer({"x": ASKED})["score"]


@pytest.fixture(scope="module")
def platform(bare: Any) -> Any:
    return bare


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory, platform: Any) -> Snapshots:
    return Snapshots(tmp_path_factory.mktemp("small"), platform.state.parent / "native.pem")


@pytest.fixture
def small(platform: Any, snapshots: Snapshots) -> Iterator[Any]:
    """The model `small`, whose hosts may run native code and run that of `one`."""
    platform.client.apply(MANIFEST.replace("SETTINGS", "{compile: true}"))
    done = publish(platform, snapshots.compiled("one"))
    assert done.state == "done", done.message
    yield platform
    platform.client.wait_change(platform.client.delete("small").id, timeout_seconds=PATIENCE_SECONDS)


def publish(platform: Any, directory: Path) -> Any:
    change = platform.client.publish("small", {"dense": directory})
    return platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)


def ask(platform: Any, region: str) -> httpx.Response:
    tensor = {"name": "x", "shape": list(ASKED.shape), "datatype": "FP32", "data": ASKED.ravel().tolist()}
    url = f"{platform.endpoints['gateways'][region]}/v2/models/small/infer"
    return httpx.post(url, json={"inputs": [tensor]}, timeout=60, trust_env=False)


def check(platform: Any, expected: np.ndarray, *, snapshot: int | None = None) -> None:
    """Both regions answer within the tolerance, and prove by which snapshot."""
    for region in platform.endpoints["gateways"]:
        answer = ask(platform, region)
        assert answer.status_code == 200, answer.text
        assert snapshot is None or answer.headers["x-ipnext-snapshots"] == f"dense={snapshot}"
        [score] = answer.json()["outputs"]
        got = np.array(score["data"], np.float32)
        assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def hosts(platform: Any) -> list[psutil.Process]:
    return platform.found("serving.host", "--id small.dense.")


def runs_library(host: psutil.Process) -> bool:
    """Whether the library is mapped into the process."""
    return any(Path(mapped.path).name == LIBRARY_FILE for mapped in host.memory_maps())


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_library_runs_where_the_manifest_asks_for_it_and_its_source_serves_beside_it(
    small: Any, snapshots: Snapshots
) -> None:
    check(small, snapshots.expected("one"), snapshot=1)
    assert [runs_library(host) for host in hosts(small)] == [True, True]

    done = publish(small, snapshots.root / "two")
    assert done.state == "done", done.message
    check(small, snapshots.expected("two"), snapshot=2)

    back = small.client.rollback("small", generation=1)
    assert small.client.wait_change(back.id, timeout_seconds=PATIENCE_SECONDS).state == "done"
    check(small, snapshots.expected("one"), snapshot=1)


def test_a_delta_of_a_compiled_snapshot_runs_its_library(small: Any, snapshots: Snapshots, tmp_path: Path) -> None:
    made = ipnext(
        *("delta", str(snapshots.compiled("one")), str(snapshots.root / "two")), "--out", str(tmp_path / "delta")
    )
    assert made.exit_code == 0, made.output
    done = publish(small, tmp_path / "delta")
    assert done.state == "done", done.message
    check(small, snapshots.expected("two"))
    assert [runs_library(host) for host in hosts(small)] == [True, True]


def test_a_library_is_refused_where_the_manifest_does_not_ask_for_it(platform: Any, snapshots: Snapshots) -> None:
    platform.client.apply(MANIFEST.replace("SETTINGS", "{}"))
    done = publish(platform, snapshots.compiled("one"))
    assert (done.state, done.reason) == ("refused", "UnsafeFormat"), done.message
    told = ipnext("explain", "small", "-o", "json", api=platform.endpoints["api"]).stdout
    assert "hosts run it only if settings.compile of part 'dense' asks for it" in told
    assert hosts(platform) == []

    platform.client.apply(MANIFEST.replace("SETTINGS", "{compile: true}"))
    done = publish(platform, snapshots.compiled("one"))
    assert done.state == "done", f"the same bytes, now asked for: {done.message}"
    platform.client.wait_change(platform.client.delete("small").id, timeout_seconds=PATIENCE_SECONDS)


def test_a_tampered_library_is_refused_before_and_after_it_is_stored(
    small: Any, snapshots: Snapshots, tmp_path: Path
) -> None:
    spoiled = tmp_path / "spoiled"
    subprocess.run(["cp", "-r", str(snapshots.compiled("two")), str(spoiled)], check=True)
    flip_a_byte(spoiled / LIBRARY_FILE)
    with pytest.raises(ArtifactDigestMismatch, match=r"file 'library\.so'"):
        publish(small, spoiled)

    [blob] = small.state.glob(f"**/artifacts/blobs/{snapshots.library}")
    kept = blob.read_bytes()
    flip_a_byte(blob)
    try:
        done = publish(small, snapshots.compiled("two"))
        assert (done.state, done.reason) == ("refused", "ArtifactDigestMismatch"), done.message
        assert "dense/library.so" in small.client.explain("small").message
        check(small, snapshots.expected("one"))
    finally:
        blob.write_bytes(kept)


def test_a_library_that_was_tampered_with_in_a_hosts_cache_is_fetched_anew(small: Any, snapshots: Snapshots) -> None:
    cached = list(small.state.glob(f"regions/*/cache/*/{LIBRARY_FILE}"))
    assert len(cached) == 2
    before = {host.pid for host in hosts(small)}
    for path in cached:
        whole = path.read_bytes()
        path.unlink()  # the running host keeps its own
        path.write_bytes(whole)
        flip_a_byte(path)
    for host in hosts(small):
        host.kill()
    until(lambda: hosts(small) and {host.pid for host in hosts(small)}.isdisjoint(before))
    until(lambda: all(ask(small, region).status_code == 200 for region in small.endpoints["gateways"]))
    check(small, snapshots.expected("one"))
    assert [runs_library(host) for host in hosts(small)] == [True, True]
    assert {path.read_bytes() for path in cached} == {(snapshots.compiled("one") / LIBRARY_FILE).read_bytes()}
