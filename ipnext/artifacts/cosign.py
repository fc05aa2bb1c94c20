"""Signatures of cosign's key pairs over an OCI image, as signatures of the snapshot that the image has.

cosign signs a short document with the digest of an image: its "simple signing" payload (cosign 2), or an in-toto
statement in a DSSE envelope (cosign 3). The image's manifest names each file by its SHA-256, and so the snapshot's
manifest, which names all others again. A proof has these documents, so that hosts judge it without the registry.
Formats: SIGNATURE_SPEC.md and cmd/cosign/cli/sign of sigstore/cosign.
"""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from ipnext.artifacts.bounded_json import parse_bounded, validate_document
from ipnext.errors import InvalidInput, SignatureInvalid
from ipnext.model.registry.registry import SNAPSHOT_FILE
from ipnext.model.registry.signing import PAYLOAD_TYPE as STATEMENT_MEDIA_TYPE
from ipnext.model.registry.signing import CosignProof
from ipnext.model.value import Value

PAYLOAD_MEDIA_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
PAYLOAD_TYPE: Final = "cosign container image signature"
PREDICATE_TYPE: Final = "https://sigstore.dev/cosign/sign/v1"
STATEMENT_TYPES: Final = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")
TITLES: Final = ("org.cncf.model.filepath", "org.opencontainers.image.title")
"""Annotations of a layer that have its path, the first one that is there."""
MOST_SEPARATORS: Final = 20_000

T = TypeVar("T", bound=Value)


class _Document(Value):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)


class _Layer(_Document):
    digest: str
    annotations: Mapping[str, str] | None = None

    @property
    def path(self) -> str:
        """Path of the file; empty if it has none."""
        given = self.annotations or {}
        return next((given[name] for name in TITLES if given.get(name)), "")


class _Image(_Document):
    layers: tuple[_Layer, ...]


class _Index(_Document):
    manifests: tuple[_Layer, ...]


class _SignedImage(_Document):
    docker_manifest_digest: str = Field(alias="docker-manifest-digest")


class _Critical(_Document):
    image: _SignedImage
    type: str


class _Payload(_Document):
    critical: _Critical


class _Subject(_Document):
    digest: Mapping[str, str]


class _Statement(_Document):
    type: str = Field(alias="_type")
    predicate_type: str
    subject: tuple[_Subject, ...] = Field(min_length=1, max_length=1)


def signed_bytes(proof: CosignProof, digest: str) -> bytes:
    """Return the bytes that cosign signed, if they lead to the snapshot `digest`.

    Raises:
        SignatureInvalid: a document can't be read, or has not the digest by which the one before it names it; the image
            has no `snapshot.json`, or that of another snapshot.
    """
    try:
        payload = base64.b64decode(proof.payload, validate=True)
        documents = [base64.b64decode(one, validate=True) for one in proof.documents]
        _check_path(_image_of_statement(payload) if proof.dsse else _image_of_payload(payload), documents, digest)
    except (ValueError, InvalidInput) as error:
        fault = error.message if isinstance(error, InvalidInput) else str(error)
        msg = f"its signature by cosign can't be followed: {fault}"
        raise SignatureInvalid(msg) from error
    return _envelope_bytes(payload) if proof.dsse else payload


def is_signature(statement: bytes) -> bool:
    """Check whether an in-toto statement is one by which cosign signs, and no attestation."""
    try:
        _image_of_statement(statement)
    except InvalidInput:
        return False
    return True


def _envelope_bytes(payload: bytes) -> bytes:
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - a slow import

    found: bytes = Envelope(payload, STATEMENT_MEDIA_TYPE, {}).pae()
    return found


def _image_of_payload(payload: bytes) -> str:
    critical = _read(payload, _Payload, "payload").critical
    if critical.type != PAYLOAD_TYPE:
        msg = f"payload: critical.type is {critical.type[:100]!r}; allowed: {PAYLOAD_TYPE!r}"
        raise InvalidInput(msg)
    return critical.image.docker_manifest_digest


def _image_of_statement(payload: bytes) -> str:
    statement = _read(payload, _Statement, "statement")
    if statement.type not in STATEMENT_TYPES:
        msg = f"statement: _type is {statement.type[:100]!r}; allowed: {', '.join(STATEMENT_TYPES)}"
        raise InvalidInput(msg)
    if statement.predicate_type != PREDICATE_TYPE:
        msg = f"statement: predicateType is {statement.predicate_type[:100]!r}; allowed: {PREDICATE_TYPE!r}"
        raise InvalidInput(msg)
    return f"sha256:{statement.subject[0].digest.get('sha256', '')}"


def _check_path(named: str, documents: list[bytes], digest: str) -> None:
    for document in documents[:-1]:
        _check_digest(document, named, "index")
        inner = f"sha256:{hashlib.sha256(documents[-1]).hexdigest()}"
        if all(each.digest != inner for each in _read(document, _Index, "index").manifests):
            msg = f"the signed index has no image {inner}"
            raise InvalidInput(msg)
        named = inner
    _check_digest(documents[-1], named, "image")
    found = [layer.digest for layer in _read(documents[-1], _Image, "image").layers if layer.path == SNAPSHOT_FILE]
    if found != [f"sha256:{digest}"]:
        shown = ", ".join(one[:80] for one in found[:3]) or "none"
        msg = (
            f"the {SNAPSHOT_FILE} of the signed image is {shown}, this snapshot's is sha256:{digest}; "
            f"push the {SNAPSHOT_FILE} that IPnext's tools wrote, unchanged"
        )
        raise InvalidInput(msg)


def _check_digest(document: bytes, named: str, what: str) -> None:
    found = f"sha256:{hashlib.sha256(document).hexdigest()}"
    if found != named:
        msg = f"the signed {what} is {named[:80]}, the given one {found}"
        raise InvalidInput(msg)


def _read(content: bytes, kind: type[T], what: str) -> T:
    try:
        found: Any = parse_bounded(content, most_separators=MOST_SEPARATORS)
        return validate_document(found, kind)
    except InvalidInput as fault:
        msg = f"{what}: {fault.message}"
        raise InvalidInput(msg) from fault
