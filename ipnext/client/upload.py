"""Checks of a local snapshot before the client uploads anything."""

from pathlib import Path

from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint
from ipnext.artifacts.checkpoints.reader import is_checkpoint
from ipnext.artifacts.hashing import hash_stream
from ipnext.artifacts.layout import read_manifest
from ipnext.artifacts.programs.forms import UnsafeProgram
from ipnext.artifacts.programs.reader import parse_program, program_file
from ipnext.artifacts.sources import ArtifactSource
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput
from ipnext.model.registry.registry import SNAPSHOT_FILE, ArtifactFile, SnapshotManifest


def published_manifest(source: ArtifactSource, directory: Path) -> SnapshotManifest:
    """Return the manifest of a directory to publish: a snapshot's own, or one made of a checkpoint directory.

    As `verify_snapshot`.
    """
    if not (directory / SNAPSHOT_FILE).exists() and is_checkpoint(directory):
        return describe_checkpoint(directory).manifest
    return verify_snapshot(source)


def verify_snapshot(source: ArtifactSource) -> SnapshotManifest:
    """Return the manifest of a snapshot directory whose files all exist with the stated size and SHA-256.

    Raises InvalidInput (no snapshot.json, or a program that hosts would not load), ArtifactMissing,
    ArtifactDigestMismatch.
    """
    try:
        stream = source.open(SNAPSHOT_FILE)
    except ArtifactMissing as error:
        msg = (
            f"{source.uri} holds no {SNAPSHOT_FILE}: it is no snapshot; "
            "`serving.export.export_model` writes one, `ipnext import-checkpoint` makes one of a checkpoint"
        )
        raise InvalidInput(msg, field="parts", value=source.uri) from error
    with stream:
        manifest = read_manifest(stream.read(), f"{SNAPSHOT_FILE} in {source.uri}")
    for file in manifest.files:
        _check(source, file)
    program = program_file(manifest)
    if program is not None:
        _check_program(source, program)
    return manifest


def _check_program(source: ArtifactSource, file: ArtifactFile) -> None:
    with source.open(file.path) as stream:
        content = stream.read(file.size_bytes)
    try:
        parse_program(content)
    except UnsafeProgram as problem:
        msg = f"file {file.path!r} in {source.uri}: {problem}; export the model again"
        raise InvalidInput(msg, field="parts", value=source.uri) from problem


def _check(source: ArtifactSource, file: ArtifactFile) -> None:
    size = source.size_bytes(file.path)
    if size != file.size_bytes:
        msg = f"file {file.path!r} in {source.uri} has {size} bytes, {SNAPSHOT_FILE} says {file.size_bytes}"
        raise ArtifactDigestMismatch(msg)
    with source.open(file.path) as stream:
        found, _ = hash_stream(stream)
    if found != file.sha256:
        msg = f"file {file.path!r} in {source.uri} has SHA-256 {found}, {SNAPSHOT_FILE} says {file.sha256}"
        raise ArtifactDigestMismatch(msg)
