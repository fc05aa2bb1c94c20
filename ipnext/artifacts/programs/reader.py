"""Reads `program.json` of a snapshot of the torch engine, without torch.

Every reader of a program uses it: `ipnext publish` before it uploads, the check `program` of a publish, the hosts, and
the commands `ipnext split`, `compile` and `delta`, which the platform runs too.
"""

from typing import Any, Final

from ipnext.artifacts.bounded_json import parse_bounded
from ipnext.artifacts.programs.forms import UnsafeProgram
from ipnext.artifacts.programs.schema import FORMAT, check_document
from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import ArtifactFile, SnapshotManifest

PROGRAM_FILE: Final = "program.json"
ENGINE: Final = "torch"
"""The engine whose snapshots have a program."""

LARGEST_PROGRAM_BYTES: Final = 16 << 20
"""Some 14,000 operations."""
MOST_SEPARATORS: Final = 1_000_000
"""Some 11,000 operations, at 90 each; a plain transformer of twenty layers has 320."""


def program_file(manifest: SnapshotManifest) -> ArtifactFile | None:
    """Return the program of a full snapshot of the torch engine.

    None for a delta, which uses its parent's, and for other engines.
    """
    if manifest.engine != ENGINE:
        return None
    return next((file for file in manifest.files if file.path == PROGRAM_FILE), None)


def parse_program(content: bytes) -> dict[str, Any]:
    """Return the document in these bytes.

    Raises UnsafeProgram if it is not JSON, of another format, or contains anything that the exporter does not write.
    """
    if len(content) > LARGEST_PROGRAM_BYTES:
        msg = f"has {len(content)} bytes; allowed: {LARGEST_PROGRAM_BYTES}"
        raise UnsafeProgram(msg)
    try:
        document = parse_bounded(content, most_separators=MOST_SEPARATORS)
    except InvalidInput as error:
        raise UnsafeProgram(error.message) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        msg = f"is not of format {FORMAT}"
        raise UnsafeProgram(msg)
    check_document(document)
    return document
