"""The builders of the workflow tests, for the rooms below them."""

import importlib.util
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from activities.validation.validator import Candidate
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.registry.registry import Snapshot
from ipnext.model.registry.signing import SignerPolicy


def load_house() -> ModuleType:
    name = "ipnext_test_house"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "workflows" / "house.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    return load_house()


@pytest.fixture
def house(kit, tmp_path, migrated):
    found = kit.House(tmp_path, migrated)
    found.apply_fleet()
    yield found
    found.close()


@pytest.fixture
def candidate(house, kit):
    """Build a candidate generation; `parts` replace sources, `spec` replaces fields of the manifest."""

    def build(
        *, serving: dict | None = None, spec: dict | None = None, native_signers: SignerPolicy | None = None, **parts
    ) -> Candidate:
        manifest = parse_manifest(kit.manifest("ranker", **(spec or {})))
        sources = {
            "sparse": house.source(kit.SPARSE, kit.weights(1)),
            "dense": house.source(kit.DENSE, kit.weights(2)),
            **parts,
        }
        now = snapshots_of(sources)
        return Candidate(
            manifest=manifest,
            snapshots=now,
            serving=snapshots_of(serving) if serving else None,
            serving_graph=manifest.spec.graph if serving else None,
            artifacts=house.artifacts,
            beat=lambda _: None,
            native_signers=native_signers,
        )

    return build


def snapshots_of(sources) -> dict[str, Snapshot]:
    return {
        part: Snapshot(
            model="ranker",
            part=part,
            number=1,
            digest=source.manifest.digest,
            uri=source.uri,
            manifest=source.manifest,
            created_at=datetime.now(UTC),
        )
        for part, source in sources.items()
    }
