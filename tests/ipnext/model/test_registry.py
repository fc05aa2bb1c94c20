"""What a snapshot's manifest may hold: as much as a snapshot needs, for each publish reads all of it."""

import pytest
from pydantic import ValidationError

from ipnext.model.registry import MOST_FILES, Signature, SnapshotManifest

FILE = {"path": "weights.json", "size_bytes": 1, "sha256": "a" * 64}


def manifest(**more):
    return SnapshotManifest(engine="torch", signature=Signature(inputs=(), outputs=()), **({"files": ()} | more))


@pytest.mark.parametrize(
    "more",
    [
        {"files": [FILE] * (MOST_FILES + 1)},
        {"producer": {"torch": "x" * 1025}},
        {"producer": {"x" * 1025: "1"}},
        {"producer": {f"tool-{number}": "1" for number in range(65)}},
    ],
    ids=["files", "a text", "a name", "tools"],
)
def test_a_manifest_that_is_too_large_is_refused(more):
    with pytest.raises(ValidationError, match="at most"):
        manifest(**more)


def test_as_many_files_as_are_allowed_are_taken():
    assert len(manifest(files=[FILE] * MOST_FILES).files) == MOST_FILES
