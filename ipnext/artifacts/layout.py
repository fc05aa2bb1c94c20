"""Layout of a store, and the names and paths that are safe to use."""

import functools
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from ipnext.artifacts.bounded_json import count_separators, read_document
from ipnext.errors import ArtifactDigestMismatch, InvalidInput, SignatureInvalid, TooLarge
from ipnext.model.registry.registry import OWN_FILES, SNAPSHOT_FILE, ArtifactFile, SnapshotManifest
from ipnext.model.registry.signing import MOST_KEPT, SignatureEnvelope, read_envelope
from ipnext.model.value import canonical_json

CHUNK_BYTES = 1 << 20
"""Blobs are read and hashed in chunks of this size."""

LARGEST_MANIFEST_BYTES = 4 << 20
MOST_SEPARATORS = 200_000
"""Most commas and opening brackets of a manifest. 10,000 files have 40,000; 8,192 tensors of ten dimensions 122,000."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:")


def is_digest(name: str) -> bool:
    """Return whether a name is a SHA-256 as the store writes it."""
    return _SHA256.fullmatch(name) is not None


def blob_key(sha256: str) -> str:
    """Return the path of a blob below the store's root. InvalidInput if it is no SHA-256."""
    return f"blobs/{_digest(sha256)}"


def snapshot_key(digest: str) -> str:
    """Return the path of a snapshot's manifest below the store's root."""
    return f"snapshots/{_digest(digest)}/{SNAPSHOT_FILE}"


def signatures_prefix(digest: str) -> str:
    """Return the folder of a snapshot's signatures below the store's root, each a separate object."""
    return f"snapshots/{_digest(digest)}/signatures/"


def signature_key(digest: str, name: str) -> str:
    """Return the path of one of a snapshot's signatures, by the SHA-256 of its content."""
    return f"{signatures_prefix(digest)}{_digest(name)}"


def snapshot_uri(store_uri: str, digest: str) -> str:
    """Return the uri of a snapshot in a store."""
    return f"{store_uri}/snapshots/{_digest(digest)}"


def digest_in(uri: str, store_uri: str) -> str:
    """Return the digest of a snapshot's uri. InvalidInput if the uri is not of this store."""
    prefix = f"{store_uri}/snapshots/"
    digest = uri.removeprefix(prefix)
    if not uri.startswith(prefix) or not _SHA256.fullmatch(digest):
        msg = f"uri: {uri!r} is no snapshot of this artifact store; allowed: {prefix}<sha256>"
        raise InvalidInput(msg, field="uri", value=uri, allowed=(f"{prefix}<sha256>",))
    return digest


def manifest_bytes(manifest: SnapshotManifest) -> bytes:
    """Return the content of snapshot.json: its SHA-256 is the snapshot's digest.

    TooLarge if no reader would accept it.
    """
    content = canonical_json(manifest).encode()
    if len(content) > LARGEST_MANIFEST_BYTES:
        msg = f"{SNAPSHOT_FILE} has {len(content)} bytes; allowed: {LARGEST_MANIFEST_BYTES}"
        raise TooLarge(msg)
    found = count_separators(content)
    if found > MOST_SEPARATORS:
        msg = f"{SNAPSHOT_FILE} has {found} commas and brackets; allowed: {MOST_SEPARATORS}"
        raise TooLarge(msg)
    return content


def check_manifest(manifest: SnapshotManifest) -> None:
    """Check a manifest before a store keeps it. TooLarge; InvalidInput if a path is unsafe."""
    check_paths(manifest.files)
    manifest_bytes(manifest)


def read_manifest(content: bytes, subject: str) -> SnapshotManifest:
    """Parse a snapshot.json from outside. InvalidInput names the field, or the unsafe path."""
    try:
        manifest = read_document(content, SnapshotManifest, most_separators=MOST_SEPARATORS)
    except InvalidInput as fault:
        msg = f"{subject}: {fault.message}"
        raise InvalidInput(msg, field=fault.field, value=fault.value, allowed=fault.allowed) from fault
    check_paths(manifest.files)
    return manifest


def read_stored(content: bytes, digest: str, subject: str) -> SnapshotManifest:
    """Parse a snapshot.json of the store. ArtifactDigestMismatch if its bytes are not the committed ones."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise mismatch(subject, expected=digest, found=found)
    return read_manifest(content, subject)


class SignatureChanges(NamedTuple):
    """Changes of an envelope to the signatures of a snapshot, by their names."""

    added: Mapping[str, bytes]
    dropped: frozenset[str]


def signature_changes(
    known: Mapping[str, bytes],
    envelope: SignatureEnvelope,
    digest: str,
    keep: Callable[[], Collection[str]] | None = None,
) -> SignatureChanges:
    """Return the files to write and to remove so that an envelope's signatures are stored.

    Unreadable files are removed. Each signature is named by its content, so that writers at the same time write
    different objects, or the same one. `keep` returns the ids of keys whose signatures stay if there would be more than
    MOST_KEPT; None: all. Raises SignatureInvalid.
    """
    subject = f"snapshot {digest:.16}"
    whole = read_envelope(envelope.content, digest, subject)
    there = {name: one for name, content in known.items() if (one := _read_signature(content, digest)) is not None}
    added = {name: content for name, content in _contents(whole).items() if name not in there}
    dropped = known.keys() - there.keys() - added.keys()
    if len(there) + len(added) > MOST_KEPT and keep is not None:
        ids = keep()
        dropped |= {name for name, one in there.items() if one.signatures[0].keyid not in ids}
    if added and len(there.keys() - dropped) + len(added) > MOST_KEPT:
        msg = f"{subject}: has {MOST_KEPT} signatures, as many as a snapshot may have; nothing was added"
        raise SignatureInvalid(msg)
    return SignatureChanges(added, frozenset(dropped))


def joined_signatures(known: Mapping[str, bytes], digest: str) -> bytes | None:
    """Return the signature file of a snapshot, with its readable signatures in the order of their names.

    None if there are none.
    """
    read = [_read_signature(known[name], digest) for name in sorted(known)]
    found = [one for one in read if one is not None]
    return functools.reduce(SignatureEnvelope.merge, found).content if found else None


def _contents(envelope: SignatureEnvelope) -> dict[str, bytes]:
    """Return each signature in its stored form: a separate envelope, by the SHA-256 of that."""
    each = [envelope.model_copy(update={"signatures": (one,)}).content for one in envelope.signatures]
    return {hashlib.sha256(content).hexdigest(): content for content in each}


def _read_signature(content: bytes, digest: str) -> SignatureEnvelope | None:
    """Read one signature; None if it is no signature of this snapshot."""
    try:
        found = read_envelope(content, digest, "")
    except SignatureInvalid:
        return None
    return found if len(found.signatures) == 1 else None


def check_paths(files: Sequence[ArtifactFile]) -> None:
    """Check that every path stays inside the snapshot's directory and none blocks another.

    InvalidInput names the first.
    """
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
    """Return the error for bytes that differ from the expected ones."""
    error = ArtifactDigestMismatch(
        f"{subject} has SHA-256 {found}, expected {expected}; it is corrupt: publish it again"
    )
    error.public_message = f"{subject} has not the expected SHA-256 {expected}; it is corrupt: publish it again"
    return error


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
