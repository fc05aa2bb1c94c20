"""Sigstore bundles that cosign pushed next to an image: each is the layer of a manifest that refers to the image."""

import base64
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from pydantic import Field

from ipnext.artifacts.bounded_json import parse_bounded, validate_document
from ipnext.artifacts.cosign import PREDICATE_TYPE, is_signature
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput, TooLarge
from ipnext.model.registry.registry import ArtifactFile
from ipnext.model.registry.signing import LARGEST_PAYLOAD_BYTES, LONGEST_SIGNATURE, MOST_SIGNATURES, PAYLOAD_TYPE
from ipnext.sources.oci.blob import open_blob
from ipnext.sources.oci.image import IMAGE, INDEX, Descriptor, Document, Image, Index, read_manifest
from ipnext.sources.oci.registry import Repository

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle"
"""Of bundles, without the version."""
UNSPECIFIED: Final = frozenset({"", "application/vnd.oci.empty.v1+json"})
"""Artifact types by which an index does not tell what a manifest is: clients that keep the index in a tag, such as
cosign 2.5, give the media type of the manifest's empty configuration."""
PREDICATE_ANNOTATION: Final = "dev.sigstore.bundle.predicateType"
MOST_READ: Final = 100
"""Bundles of one image that are read; registries list them in any order."""
LARGEST_INDEX_BYTES: Final = 256 * 2**10
LARGEST_MANIFEST_BYTES: Final = 16 * 2**10
LARGEST_BUNDLE_BYTES: Final = 64 * 2**10
"""Of a bundle with an entry of the transparency log, which is not read."""
MOST_SEPARATORS: Final = 2_000


class _Signature(Document):
    sig: str = Field(min_length=1, max_length=LONGEST_SIGNATURE)


class _Envelope(Document):
    payload: str = Field(min_length=1, max_length=2 * LARGEST_PAYLOAD_BYTES)
    payload_type: str
    signatures: tuple[_Signature, ...] = Field(min_length=1, max_length=1)


class _Bundle(Document):
    dsse_envelope: _Envelope


class Signed(NamedTuple):
    """What is signed, and a signature, which nothing has judged yet: both in base64."""

    payload: str
    sig: str


def find_bundles(repository: Repository, digest: str, ends_at: float) -> Iterator[Signed]:
    """Yield the signed statements in bundles of the image or index `digest` (sha256:...), at most MOST_SIGNATURES.

    Left out are attestations, bundles of other forms, and what the registry lacks or has with other bytes: anyone who
    may push adds to the list, and lists in tags keep what was deleted. MOST_READ bundles are read, in the list's order.

    Raises:
        InvalidInput, TooLarge: the list of what refers to the image can't be read, or is too large.
        Unavailable: the registry does not answer.
    """
    listed = [each for each in _list_referrers(repository, digest, ends_at) if _may_be_bundle(each)]
    read = (_read_bundle(repository, each, ends_at) for each in listed[:MOST_READ])
    yield from islice((found for found in read if found is not None), MOST_SIGNATURES)


def _list_referrers(repository: Repository, digest: str, ends_at: float) -> tuple[Descriptor, ...]:
    """Return what refers to a digest: by the registry's own list, else by the tag in which clients keep one."""
    subject = f"what refers to {repository.place.url}@{digest}"
    try:
        content = repository.read_referrers(digest, INDEX, LARGEST_INDEX_BYTES, ends_at)
    except ArtifactMissing:
        try:
            content = repository.read_manifest(digest.replace(":", "-"), INDEX, LARGEST_INDEX_BYTES, ends_at)
        except ArtifactMissing:
            return ()
    found = read_manifest(content, subject)
    return found.manifests if isinstance(found, Index) else ()


def _may_be_bundle(listed: Descriptor) -> bool:
    fits = listed.artifact_type.startswith(MEDIA_TYPE) or listed.artifact_type in UNSPECIFIED
    told = listed.annotation(PREDICATE_ANNOTATION) in {"", PREDICATE_TYPE}
    return fits and told and listed.size <= LARGEST_MANIFEST_BYTES


def _read_bundle(repository: Repository, listed: Descriptor, ends_at: float) -> Signed | None:
    try:
        content = _read_content(repository, listed, ends_at)
        if content is None:
            return None
        found = validate_document(parse_bounded(content, most_separators=MOST_SEPARATORS), _Bundle).dsse_envelope
        statement = base64.b64decode(found.payload, validate=True)
    except (InvalidInput, TooLarge, ArtifactMissing, ArtifactDigestMismatch, ValueError):
        return None
    if found.payload_type != PAYLOAD_TYPE or not is_signature(statement):
        return None
    return Signed(found.payload, found.signatures[0].sig)


def _read_content(repository: Repository, listed: Descriptor, ends_at: float) -> bytes | None:
    """Return the bytes of the only layer of a manifest; None if that is no bundle."""
    content = repository.read_manifest(listed.digest, IMAGE, LARGEST_MANIFEST_BYTES, ends_at)
    manifest = read_manifest(content, f"manifest {listed.digest}")
    layers = manifest.layers if isinstance(manifest, Image) else ()
    if len(layers) != 1 or not layers[0].media_type.startswith(MEDIA_TYPE) or layers[0].size > LARGEST_BUNDLE_BYTES:
        return None
    file = ArtifactFile(path="bundle", sha256=layers[0].digest.removeprefix("sha256:"), size_bytes=layers[0].size)
    with open_blob(repository, file, ends_at) as stream:
        return stream.read(LARGEST_BUNDLE_BYTES)
