"""A whole platform for tests.

Real SQLite store, real file artifacts, infrastructure in memory, models without torch.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save

from activities.optimization.step_process import StepSource
from activities.runtime.tool_process import Beat
from ipnext.artifacts.programs.schema import FORMAT
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.lifecycle.changes.change import Change, ChangeKind
from ipnext.model.lifecycle.replans.replan import Replan
from ipnext.model.lifecycle.status import Condition, ConditionType
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.split import SplitPolicy
from ipnext.model.registry.optimization import AccuracyReport, Measured, ReplayReport
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, SnapshotSource, TensorSpec
from ipnext.store.operations.change_end import note_waiting
from ipnext.store.store import Store
from serving.splitting.report import SplitReport
from tests.fleets import two_regions

REGIONS = ("us-east", "eu-west")

FLEET = two_regions()

IN = TensorSpec(name="features", datatype="FP32", shape=(-1, 4))
MID = TensorSpec(name="embeddings", datatype="FP32", shape=(-1, 8))
OUT = TensorSpec(name="score", datatype="FP32", shape=(-1, 1))

SPARSE = Signature(inputs=(IN,), outputs=(MID,))
DENSE = Signature(inputs=(MID.model_copy(update={"name": "x"}),), outputs=(OUT,))

GRAPH = {
    "nodes": [
        {"name": "sparse", "part": "sparse", "inputs": {"features": "request.features"}},
        {"name": "dense", "part": "dense", "inputs": {"x": "sparse.embeddings"}},
    ],
    "outputs": {"score": "dense.score"},
}


THREE_WAVES = {"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 180}


def manifest(name: str, **spec: object) -> dict[str, object]:
    """A model of two parts with demand in both regions; `spec` replaces fields."""
    part = {"engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
    whole = {
        "parts": [{"name": "sparse", **part}, {"name": "dense", **part}],
        "graph": GRAPH,
        "demand": [{"region": "us-east", "qps": 350}, {"region": "eu-west", "qps": 180}],
        "latencyToleranceMs": 100,
        "rollout": THREE_WAVES,
        **spec,
    }
    return {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": name}, "spec": whole}


def _program() -> bytes:
    """A program of no operations."""
    lists: dict = {name: [] for name in ("inputs", "outputs", "nodes")}
    values: dict = {name: {} for name in ("tensor_values", "sym_int_values", "sym_bool_values")}
    module = {
        "graph": {**lists, **values},
        "signature": {"input_specs": [], "output_specs": []},
        "module_call_graph": [],
    }
    version = {"major": 8, "minor": 20}
    program = {"graph_module": module, "opset_version": {}, "range_constraints": {}, "schema_version": version}
    return json.dumps({"format": FORMAT, "inputs": [], "outputs": [], "tensors": {}, "program": program}).encode()


PROGRAM = _program()


def weights(seed: int, *, value: float | None = None) -> dict[str, np.ndarray]:
    """Two small tensors; with `value` the second one holds it."""
    drawn = np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32)
    bias = np.zeros(8, np.float32)
    if value is not None:
        bias[3] = value
    return {"weight": drawn, "bias": bias}


def write_snapshot(
    directory: Path,
    signature: Signature,
    tensors: Mapping[str, np.ndarray],
    *,
    engine: str = "torch",
    more: Mapping[str, bytes] | None = None,
    parent: str | None = None,
) -> Path:
    """A snapshot directory as the export writes it, without torch."""
    files = {"weights.safetensors": save(dict(tensors)), "program.json": PROGRAM, **(more or {})}
    directory.mkdir(parents=True)
    for path, content in files.items():
        (directory / path).write_bytes(content)
    described = tuple(
        ArtifactFile(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for path, content in sorted(files.items())
    )
    snapshot = SnapshotManifest(engine=engine, signature=signature, files=described, parent=parent)
    (directory / "snapshot.json").write_text(snapshot.model_dump_json())
    return directory


WHOLE = Signature(inputs=(IN,), outputs=(OUT,))

BY_TABLE = {"parts": [{"name": "sparse", "modules": ["tables"]}], "default": "dense"}
IN_THE_MIDDLE = {"parts": [{"name": "middle", "modules": ["middle"]}], "default": "dense"}

PIECES = {"sparse": ("sparse", "dense"), "middle": ("dense-s0", "middle", "dense-s2")}
"""First part of a policy -> the segments that its cut gives, one after the other."""


class Cutter:
    """Stands in for the process that cuts: by one of the two policies above, into snapshots without torch."""

    def __init__(self) -> None:
        self.calls = 0
        self.faults: list[Exception | None] = []
        """Of the next calls, one after the other, before anything is cut."""
        self.policies: list[SplitPolicy] = []
        """Of each call."""
        self.sends: list[TensorSpec] = []
        """What the first segment sends in the next calls, one after the other, in place of IN."""

    def __call__(self, snapshot: Path, policy: SplitPolicy, out: Path, beat: Beat) -> SplitReport:
        self.calls += 1
        self.policies.append(policy)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        beat("cutting")
        whole = SnapshotManifest.model_validate_json((snapshot / "snapshot.json").read_bytes())
        names = PIECES[policy.parts[0].name]
        sent = self.sends.pop(0) if self.sends else IN
        for name in names:
            own = int(whole.files[-1].sha256[:8], 16) if name == names[0] else len(name)
            write_snapshot(out / name, _piece(name, names, sent), weights(own), parent=whole.digest)
        return _report(names, policy, whole)


class Deriver:
    """Stands in for the process of a step: the derived snapshot has other weights, half as many bytes."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """Digest of the source of each call."""
        self.faults: list[Exception | None] = []
        """Of the next calls, one after the other, before anything is derived."""
        self.broken: tuple[str, ...] = ()
        """Limits that the next ones break."""
        self.replays: list[Path | None] = []

    def __call__(self, source: StepSource, step: OptimizationStep, out: Path, beat: Beat) -> AccuracyReport:
        whole = SnapshotManifest.model_validate_json((source.snapshot / "snapshot.json").read_bytes())
        self.calls.append(whole.digest)
        self.replays.append(source.replay)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        beat("deriving")
        if not self.broken:
            write_snapshot(out, whole.signature, weights(int(whole.digest[:8], 16)), parent=whole.digest)
        return AccuracyReport(
            kind=step.kind,
            settings=step.spec.model_dump(mode="json", by_alias=True),
            parent=whole.digest,
            tools={},
            weights_bytes=Measured(before=200, after=100),
            replaced_bytes=Measured(before=200, after=100),
            replay=ReplayReport(rows=1, source="drawn"),
            max_error=0.1,
            max_relative_error=0.1,
            broken=self.broken,
        )


def _piece(name: str, names: tuple[str, ...], sent: TensorSpec) -> Signature:
    given = sent if name == names[0] else IN
    return Signature(inputs=(IN,), outputs=(OUT,) if name == names[-1] else (given,))


def _report(names: tuple[str, ...], policy: SplitPolicy, whole: SnapshotManifest) -> SplitReport:
    before = ("request", *names)
    nodes = [{"name": n, "part": n, "inputs": {"features": f"{before[i]}.features"}} for i, n in enumerate(names)]
    segments = [
        {"name": n, "part": n.partition("-")[0], "stage": i, "bytes": 160, "inputs": [], "outputs": []}
        for i, n in enumerate(names)
    ]
    hardware = {
        part.name: [h if isinstance(h, str) else h.model_dump() for h in part.hardware] for part in policy.parts
    }
    parts = [
        {
            "name": part,
            "bytes": 160,
            "modules": [part],
            "hardware": hardware.get(part, ()),
            "segments": [n for n in names if n.partition("-")[0] == part],
        }
        for part in dict.fromkeys(n.partition("-")[0] for n in names)
    ]
    graph = {"nodes": nodes, "outputs": {"score": f"{names[-1]}.score"}}
    told = {"snapshot": whole.digest, "bytes": 320, "parts": parts, "segments": segments, "graph": graph}
    return SplitReport.model_validate({**told, "tensors": (), "copied": (), "bit_equal": {"1": True, "64": True}})


class House:
    """The rooms below the workflows, in `root`.

    `migrated` is a database with all tables to begin with a copy of, `rollout` what models have that name no other one.
    """

    def __init__(
        self, root: Path, migrated: Path | None = None, *, rollout: Mapping[str, object] = THREE_WAVES
    ) -> None:
        self.root = root
        self.rollout = rollout
        self.database_url = f"sqlite:///{root}/ipnext.db"
        if migrated is not None:
            shutil.copy(migrated, root / "ipnext.db")
        self.store = Store.open(self.database_url)
        if migrated is None:
            self.store.migrate()
        self.artifacts = FileArtifactStore(root / "artifacts")
        self.infrastructure = MemoryInfrastructure(REGIONS)
        self.cutter = Cutter()
        self.deriver = Deriver()
        self._snapshots = 0

    def close(self) -> None:
        self.store.close()

    def apply_fleet(self, text: str = FLEET) -> None:
        with self.store.begin() as repository:
            repository.put_fleet(parse_manifest(yaml.safe_load(text)).spec, expected_version=None)

    def apply(self, name: str, **spec: object) -> None:
        with self.store.begin() as repository:
            whole = {"rollout": self.rollout, **spec}
            repository.put_model(parse_manifest(manifest(name, **whole)), expected_version=None)

    def bring(self, name: str, **spec: object) -> None:
        """Apply a manifest as one whose change was planned: it is in force."""
        self.apply(name, **spec)
        with self.store.begin() as repository:
            record = repository.model(name)
            repository.accept_revision(name, record.generation, record.manifest.spec)
            repository.put_in_force(name)

    def source(self, signature: Signature, tensors: Mapping[str, np.ndarray], **more: object) -> SnapshotSource:
        """A snapshot in the artifact store."""
        self._snapshots += 1
        directory = write_snapshot(self.root / f"snapshot-{self._snapshots}", signature, tensors, **more)
        return ingest_directory(self.artifacts, directory)

    def publish(
        self, name: str, seed: int, *, change_id: str | None = None, value: float | None = None, **parts: SnapshotSource
    ) -> Change:
        """Publish both parts, made from a seed; `value` makes a number of the dense part special."""
        sources = {
            "sparse": self.source(SPARSE, weights(seed)),
            "dense": self.source(DENSE, weights(seed + 1000, value=value)),
            **parts,
        }
        with self.store.begin() as repository:
            return repository.publish(name, sources, change_id=change_id or f"{name}-p{seed}")

    def apply_split(self, name: str, split: Mapping[str, object], **spec: object) -> None:
        """A model of one part that is cut."""
        whole = {"name": "whole", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
        self.apply(name, **{"parts": [whole], "graph": None, "split": split, **spec})

    def publish_whole(self, name: str, seed: int, *, change_id: str) -> Change:
        """Publish the one part of a model that is cut."""
        source = self.source(WHOLE, weights(seed))
        with self.store.begin() as repository:
            return repository.publish(name, {"whole": source}, change_id=change_id)

    def ask(self, name: str, kind: ChangeKind, change_id: str, **more: object) -> Change:
        with self.store.begin() as repository:
            change = repository.add_change(name, kind, change_id=change_id, **more)
            note_waiting(repository, change)
            return change

    def change(self, change_id: str) -> Change:
        with self.store.read() as repository:
            return repository.change(change_id)

    def ask_replan(self, replan_id: str, trigger: str = "manual", **more: object) -> Replan:
        with self.store.begin() as repository:
            return repository.add_replan(replan_id, trigger, **more)

    def replan(self, replan_id: str) -> Replan:
        with self.store.read() as repository:
            return repository.replan(replan_id)

    def condition(self, name: str, kind: ConditionType = ConditionType.READY) -> Condition:
        with self.store.read() as repository:
            return next(condition for condition in repository.conditions(name) if condition.type is kind)

    def shares(self, name: str) -> dict[str, dict[int, float]]:
        """Region -> generation -> fraction, as the gateways follow it."""
        tables = {region: self.infrastructure.table(name, region) for region in REGIONS}
        found: dict[str, dict[int, float]] = {}
        for region, table in tables.items():
            for share in table.shares if table else ():
                found.setdefault(region, {})
                found[region][share.generation] = round(found[region].get(share.generation, 0) + share.fraction, 6)
        return found

    def held(self, name: str) -> dict[str, tuple[int, ...]]:
        """Replica set -> generations, as the store wants it."""
        with self.store.read() as repository:
            return {str(d.key): d.generations for d in repository.deployments(name)}


def check_floor(infrastructure: MemoryInfrastructure, name: str, demand: Mapping[str, float]) -> None:
    """I1 and I2: at each moment every generation has the ready capacity for the traffic sent to it."""
    for moment in infrastructure.history:
        for region in REGIONS:
            for _, generation in moment.generations_with_traffic(name):
                sent = moment.sent_qps(name, region, generation, demand)
                for part in ("sparse", "dense"):
                    ready = moment.ready_qps(name, part, region, generation)
                    assert ready >= sent - 1e-6, (moment.number, moment.call, region, generation, part, ready, sent)


def as_json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True)
