"""Documents of strangers are bounded before an object is made of them, and judged up to the first fault."""

import json

import pytest

from activities.validation.weights.deltas import MOST_SEPARATORS as MOST_OF_A_DELTA
from ipnext.artifacts import layout
from ipnext.artifacts.bounded_json import CHUNK_BYTES, count_separators, read_document
from ipnext.artifacts.checkpoints import reader
from ipnext.artifacts.checkpoints.reader import AdapterConfig, LocalFiles, read_checkpoint
from ipnext.errors import InvalidInput, TooLarge
from ipnext.model.registry.checkpoint import CheckpointConfig
from ipnext.model.registry.delta import DeltaDocument
from ipnext.model.registry.registry import SnapshotManifest
from tests.genai.support.checkpoints import write_adapter

pytestmark = pytest.mark.trust

MANY = 60_000
BY_NAME = {str(number): "" for number in range(MANY)}


@pytest.mark.parametrize(
    ("kind", "document", "fault"),
    [
        (AdapterConfig, {"modules_to_save": [1] * MANY}, "modules_to_save.0: "),
        (AdapterConfig, {"rank_pattern": BY_NAME}, "rank_pattern.0: "),
        (CheckpointConfig, {"architectures": [1] * MANY}, "architectures.0: "),
        (DeltaDocument, {"tensors": BY_NAME}, "tensors.0: "),
        (SnapshotManifest, {"engine": "vllm", "producer": dict.fromkeys(BY_NAME, 1)}, "signature: "),
        (SnapshotManifest, BY_NAME, "it has 60003 faults, too many to describe"),
    ],
)
def test_a_document_of_many_faults_costs_little(kind, document, fault, described):
    with pytest.raises(InvalidInput) as refused:
        read_document(json.dumps(document).encode(), kind, most_separators=2 * MANY)
    assert refused.value.message.startswith(fault)
    assert sum(described) < 30


@pytest.fixture
def described(monkeypatch):
    """The number of faults that were described, for each error."""
    from ipnext.model import validation_errors  # noqa: PLC0415 - as the test replaces it

    numbers, read = [], validation_errors.faults_of

    def counted(error):
        found = read(error)
        numbers.append(len(found))
        return found

    monkeypatch.setattr(validation_errors, "faults_of", counted)
    return numbers


def test_a_document_of_many_values_is_refused_before_any_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("ipnext.artifacts.bounded_json.json", None)
    with pytest.raises(InvalidInput, match=r"^x: has 200001 commas and brackets; allowed: 200000$"):
        layout.read_manifest(b"[" * 200_001, "x")
    with pytest.raises(InvalidInput, match=r"^has 150001 commas and brackets; allowed: 150000$"):
        read_document(b"[" * 150_001, DeltaDocument, most_separators=MOST_OF_A_DELTA)
    directory = write_adapter(tmp_path / "lora")
    (directory / "adapter_config.json").write_bytes(b"[" * 150_001)
    with pytest.raises(InvalidInput, match=r"^adapter_config.json: has 150001 commas and brackets; allowed: 150000$"):
        read_checkpoint(LocalFiles(directory))


def test_no_store_keeps_a_manifest_that_no_reader_takes(monkeypatch):
    manifest = SnapshotManifest(engine="vllm", signature={"inputs": (), "outputs": ()}, files=())
    layout.check_manifest(manifest)
    monkeypatch.setattr(layout, "MOST_SEPARATORS", 3)
    with pytest.raises(TooLarge, match=r"snapshot.json has \d+ commas and brackets; allowed: 3"):
        layout.check_manifest(manifest)


def test_separators_are_counted_in_every_chunk():
    content = b"{[,x" * (CHUNK_BYTES // 4 + 7)
    assert count_separators(content) == 3 * (CHUNK_BYTES // 4 + 7)
    assert reader.MOST_INDEX_SEPARATORS > reader.MOST_TENSORS
