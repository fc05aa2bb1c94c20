"""Where things lie in a store, and which names and paths are safe to use."""

import hashlib
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from pydantic import ValidationError

from ipnext.errors import ArtifactDigestMismatch, InvalidInput, SignatureInvalid
from ipnext.model.manifest import invalid_input
from ipnext.model.registry import OWN_FILES, SIGNATURE_FILE, SNAPSHOT_FILE, ArtifactFile, SnapshotManifest
from ipnext.model.signing import MOST_KEPT, SignatureEnvelope, read_envelope
from ipnext.model.value import canonical_json

CHUNK_BYTES = 1 << 20
"""Blobs are read and hashed in pieces of this size."""

LARGEST_MANIFEST_BYTES = 16 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:")


def is_digest(name: str) -> bool:
    """Whether a name is a SHA-256 as the store writes it."""
    return _SHA256.fullmatch(name) is not None


def blob_key(sha256: str) -> str:
    """Where a blob lies below the store's root. InvalidInput for what is no SHA-256."""
    return f"blobs/{_digest(sha256)}"


def snapshot_key(digest: str) -> str:
    """Where a snapshot's manifest lies below the store's root."""
    return f"snapshots/{_digest(digest)}/{SNAPSHOT_FILE}"


def signature_key(digest: str) -> str:
    """Where a snapshot's signature lies below the store's root, if it has one."""
    return f"snapshots/{_digest(digest)}/{SIGNATURE_FILE}"


def snapshot_uri(store_uri: str, digest: str) -> str:
    """How a snapshot of a store is named."""
    return f"{store_uri}/snapshots/{_digest(digest)}"


def digest_in(uri: str, store_uri: str) -> str:
    """The digest of a snapshot's uri. InvalidInput for a uri that is not of this store."""
    prefix = f"{store_uri}/snapshots/"
    digest = uri.removeprefix(prefix)
    if not uri.startswith(prefix) or not _SHA256.fullmatch(digest):
        msg = f"uri: {uri!r} is no snapshot of this artifact store; allowed: {prefix}<sha256>"
        raise InvalidInput(msg, field="uri", value=uri, allowed=(f"{prefix}<sha256>",))
    return digest


def manifest_bytes(manifest: SnapshotManifest) -> bytes:
    """What the store keeps as snapshot.json: its SHA-256 is the snapshot's digest."""
    return canonical_json(manifest).encode()


def read_manifest(content: bytes, subject: str) -> SnapshotManifest:
    """Parse a snapshot.json from outside. InvalidInput names the field, or the unsafe path."""
    try:
        manifest = SnapshotManifest.model_validate_json(content)
    except ValidationError as error:
        fault = invalid_input(error, SnapshotManifest)
        msg = f"{subject}: {fault.message}"
        raise InvalidInput(msg, field=fault.field, value=fault.value, allowed=fault.allowed) from error
    check_paths(manifest.files)
    return manifest


def read_stored(content: bytes, digest: str, subject: str) -> SnapshotManifest:
    """Parse a snapshot.json of the store. ArtifactDigestMismatch where its bytes are not the ones committed."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise mismatch(subject, expected=digest, found=found)
    return read_manifest(content, subject)


def joined_signatures(
    known: bytes | None, envelope: SignatureEnvelope, digest: str, keep: Collection[str] | None = None
) -> bytes:
    """The signature file with a further envelope. What is there and can't be read gives way. SignatureInvalid.

    `keep`: keys whose signatures stay if there are more than MOST_KEPT; None: all.
    """
    subject = f"snapshot {digest:.16}"
    joined = read_envelope(envelope.content, digest, subject)
    if known is not None:
        with suppress(SignatureInvalid):
            joined = read_envelope(known, digest, "").joined(joined)
    if len(joined.signatures) > MOST_KEPT and keep is not None:
        joined = joined.only(keep)
    if len(joined.signatures) > MOST_KEPT:
        msg = f"{subject}: has {MOST_KEPT} signatures, as many as a snapshot may have; nothing was added"
        raise SignatureInvalid(msg)
    return joined.content


def check_paths(files: Sequence[ArtifactFile]) -> None:
    """Every path stays inside the snapshot's directory and none is in another's way. InvalidInput names the first."""
    paths = [file.path for file in files]
    for path in paths:
        reason = _fault_of(path)
        if reason:
            msg = f"files.path: {path!r} {reason}; allowed: a relative path such as 'weights/part-1.safetensors'"
            raise InvalidInput(msg, field="files.path", value=path)
    taken: set[str] = set()
    for path in sorted(paths):
        if path in taken or not taken.isdisjoint(str(parent) for parent in PurePosixPath(path).parents):
            msg = f"files.path: {path!r} stands twice, or lies below another file"
            raise InvalidInput(msg, field="files.path", value=path)
        taken.add(path)


def mismatch(subject: str, *, expected: str, found: str) -> ArtifactDigestMismatch:
    """The error for bytes that are not the ones that were named."""
    return ArtifactDigestMismatch(
        f"{subject} has SHA-256 {found}, expected {expected}; it is corrupt: publish it again"
    )


def _fault_of(path: str) -> str:
    steps = path.split("/")
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute"
    if "\\" in path or not path.isprintable():
        return "holds a backslash or a character that cannot be printed"
    if any(step in {"", ".", ".."} for step in steps):
        return "holds an empty step, '.' or '..'"
    if any(len(step.encode()) > 255 for step in steps) or len(path.encode()) > 1024:
        return "is too long"
    return f"takes the name {steps[0]}, which the platform writes itself" if steps[0] in OWN_FILES else ""


def _digest(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        msg = f"sha256: {sha256[:80]!r} is no digest; allowed: 64 lower case hexadecimal digits"
        raise InvalidInput(msg, field="sha256", value=sha256[:80])
    return sha256
