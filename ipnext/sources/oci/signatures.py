"""Signatures that cosign pushed next to an image, in the same repository.

cosign 2 lists them below the tag `sha256-DIGEST.sig`, cosign 3 pushes bundles that refer to the image.
"""

import base64
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ipnext.artifacts.cosign import PAYLOAD_MEDIA_TYPE, SIGNATURE_ANNOTATION
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput, SignatureInvalid, TooLarge
from ipnext.model.registry.registry import ArtifactFile
from ipnext.model.registry.signing import (
    LARGEST_IMAGE_BYTES,
    LARGEST_PAYLOAD_BYTES,
    LONGEST_SIGNATURE,
    MOST_SIGNATURES,
    CosignProof,
)
from ipnext.sources.oci.blob import open_blob
from ipnext.sources.oci.bundles import Signed, find_bundles
from ipnext.sources.oci.image import IMAGE, Descriptor, Image, read_manifest
from ipnext.sources.oci.registry import Repository

LARGEST_MANIFEST_BYTES: Final = 256 * 2**10
"""Of the manifest that lists the signatures."""


class Cosignature(NamedTuple):
    """A signature in base64, which nothing has judged yet, and what it is over."""

    sig: str
    proof: CosignProof


def find_signatures(
    repository: Repository, digest: str, documents: Sequence[bytes], ends_at: float
) -> tuple[Cosignature, ...]:
    """Return the signatures of the image or index `digest` (sha256:...); none if unsigned.

    The newest MOST_SIGNATURES of each form. `documents`: the bytes of what has the digest and, below an index, those of
    the image that is read. `ends_at` is of the monotonic clock.

    Raises:
        SignatureInvalid: the image or a list of its signatures is larger than what is kept, or can't be read.
        Unavailable: the registry does not answer.
    """
    subject = f"{repository.place.url}@{digest}"
    try:
        simple = tuple(_list_payloads(repository, digest, ends_at))
        bundles = tuple(find_bundles(repository, digest, ends_at))
    except TooLarge as error:
        raise SignatureInvalid(error.message) from error
    except (InvalidInput, ArtifactMissing, ArtifactDigestMismatch) as error:
        msg = f"{subject}: its signatures by cosign can't be read: {error.message}"
        raise SignatureInvalid(msg) from error
    size = sum(map(len, documents))
    if (simple or bundles) and size > LARGEST_IMAGE_BYTES:
        msg = (
            f"{subject}: its manifest has {size} bytes; allowed for signatures by cosign: {LARGEST_IMAGE_BYTES}. "
            "Push fewer files, or sign by `ipnext sign`"
        )
        raise SignatureInvalid(msg)
    shown = tuple(base64.b64encode(one).decode() for one in documents)
    return tuple(
        Cosignature(sig, CosignProof(payload=payload, documents=shown, dsse=dsse))
        for signed, dsse in ((simple, False), (bundles, True))
        for payload, sig in signed
    )


def _list_payloads(repository: Repository, digest: str, ends_at: float) -> Iterator[Signed]:
    tag = f"{digest.replace(':', '-')}.sig"
    try:
        content = repository.read_manifest(tag, IMAGE, LARGEST_MANIFEST_BYTES, ends_at)
    except ArtifactMissing:
        return
    listed = read_manifest(content, f"{tag} of {repository.place.url}")
    layers = listed.layers if isinstance(listed, Image) else ()
    signed = [layer for layer in layers if layer.media_type == PAYLOAD_MEDIA_TYPE]
    for layer in signed[-MOST_SIGNATURES:]:
        sig = layer.annotation(SIGNATURE_ANNOTATION)
        if 0 < len(sig) <= LONGEST_SIGNATURE and 0 < layer.size <= LARGEST_PAYLOAD_BYTES:
            yield Signed(base64.b64encode(_read_payload(repository, layer, ends_at)).decode(), sig)


def _read_payload(repository: Repository, layer: Descriptor, ends_at: float) -> bytes:
    file = ArtifactFile(path="signed payload", sha256=layer.digest.removeprefix("sha256:"), size_bytes=layer.size)
    with open_blob(repository, file, ends_at) as stream:
        return stream.read(LARGEST_PAYLOAD_BYTES)
