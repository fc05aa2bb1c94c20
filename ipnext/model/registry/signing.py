"""The permitted signers of a model's snapshots, and the form of a signature file.

A signature is a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement whose one
subject is the digest of the snapshot's manifest. The manifest has the SHA-256 and size of every file, so the signature
covers every byte. A signature by cosign, over the OCI image that a snapshot came in, is kept with what leads from that
image to the snapshot.
"""

import base64
import json
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from ipnext.errors import SignatureInvalid
from ipnext.model.registry.registry import SNAPSHOT_FILE
from ipnext.model.validation_errors import first_line
from ipnext.model.value import Value, WrittenValue, canonical_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:ipnext:snapshot:v1"
PAYLOAD_TYPE: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"

LARGEST_SIGNATURE_BYTES = 1 << 20
MOST_SIGNATURES = 32
"""Signatures of one upload, and of the keys of one owner beside a snapshot."""
MOST_KEPT = 256
"""Signatures beside one snapshot."""
LONGEST_KEY_ID = 128
LONGEST_SIGNATURE = 2048
LARGEST_PAYLOAD_BYTES = 8 * 2**10
"""Of what cosign signs."""
LARGEST_IMAGE_BYTES = 128 * 2**10
"""Of the manifests of an image that cosign signed: some 500 files."""
MOST_IMAGE_DOCUMENTS = 2
"""The manifest of an image, below an index if that was signed."""

_PEM_START = "-----BEGIN PUBLIC KEY-----"


class SignerPolicy(WrittenValue):
    """`spec.validation.signers`: keys of which one has to have signed each snapshot that is published."""

    public_keys: tuple[str, ...] = Field(min_length=1, max_length=32)
    """PEM texts of public keys (`BEGIN PUBLIC KEY`), as `ipnext keygen` writes them."""
    required: bool = True
    """False: a snapshot without a signature by one of the keys passes, one with a wrong signature by them does not."""

    @model_validator(mode="after")
    def _are_public_keys(self) -> Self:
        for index, key in enumerate(self.public_keys):
            if not key.strip().startswith(_PEM_START):
                first = key.strip().splitlines()[0][:40] if key.strip() else ""
                msg = f"publicKeys.{index}: begins with {first!r}; allowed: a PEM text that begins with {_PEM_START!r}"
                raise ValueError(msg)
        return self


class CosignProof(Value):
    """What a signature by cosign is over, and how that leads to the snapshot: all in base64.

    `payload` names the digest of the first of `documents`, an OCI index or image manifest; the last one, an image
    manifest, has the snapshot's manifest among its layers. With `dsse` it is an in-toto statement, signed as DSSE does.
    """

    dsse: bool = False
    payload: str = Field(min_length=1, max_length=2 * LARGEST_PAYLOAD_BYTES)
    documents: tuple[str, ...] = Field(min_length=1, max_length=MOST_IMAGE_DOCUMENTS)

    @property
    def fault(self) -> str | None:
        """The fault of its form; None if there is none."""
        size = sum(map(len, self.documents))
        if size > 2 * LARGEST_IMAGE_BYTES:
            return f"documents: have {size} characters; allowed: {2 * LARGEST_IMAGE_BYTES}"
        try:
            for one in (self.payload, *self.documents):
                base64.b64decode(one, validate=True)
        except ValueError:
            return "payload or documents are no base64"
        return None


class EnvelopeSignature(Value):
    """One signature of an envelope: the key's id, and the signature in base64.

    It is over the envelope's payload; with `cosign`, over that of cosign.
    """

    keyid: str
    sig: str
    cosign: CosignProof | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an absent proof: the file is a plain DSSE envelope then."""
        plain: dict[str, Any] = serialize(self)
        return plain if self.cosign else {key: plain[key] for key in plain if key != "cosign"}

    @property
    def content(self) -> bytes:
        """The signature's bytes. ValueError if `sig` is no base64."""
        return base64.b64decode(self.sig, validate=True)

    @property
    def fault(self) -> str | None:
        """The fault of its form; None if there is none."""
        if not 1 <= len(self.keyid) <= LONGEST_KEY_ID:
            return f"keyid: has {len(self.keyid)} characters; allowed: 1 to {LONGEST_KEY_ID}"
        if not 1 <= len(self.sig) <= LONGEST_SIGNATURE:
            return f"sig: has {len(self.sig)} characters; allowed: 1 to {LONGEST_SIGNATURE}"
        if self.cosign is not None and self.cosign.fault is not None:
            return f"cosign.{self.cosign.fault}"
        try:
            return None if self.content else "sig: is empty"
        except ValueError:
            return f"sig: {self.sig[:40]!r} is no base64"


class SignatureEnvelope(WrittenValue):
    """`snapshot.json.sig`. `payload` is the statement in base64."""

    payload_type: Literal["application/vnd.in-toto+json"] = PAYLOAD_TYPE
    payload: str = Field(max_length=4096)
    signatures: tuple[EnvelopeSignature, ...] = Field(min_length=1)

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return canonical_json(self).encode()

    def merge(self, other: Self) -> Self:
        """Return all signatures of both, each once. None replaces another, even with the same key."""
        return self.model_copy(update={"signatures": tuple(dict.fromkeys((*self.signatures, *other.signatures)))})


def check_form(envelope: SignatureEnvelope, subject: str) -> None:
    """Refuse an envelope that is too long, or has a malformed or duplicate signature. Raises SignatureInvalid."""
    given = envelope.signatures
    if len(given) > MOST_SIGNATURES:
        msg = f"{subject}: signatures: there are {len(given)}; allowed: {MOST_SIGNATURES} in one upload"
        raise SignatureInvalid(msg)
    for index, one in enumerate(given):
        fault = one.fault or ("stands there twice" if one in given[:index] else None)
        if fault is not None:
            msg = f"{subject}: signatures.{index}.{fault}" if one.fault else f"{subject}: signatures.{index}: {fault}"
            raise SignatureInvalid(msg)


def envelope_of(digest: str, signatures: tuple[EnvelopeSignature, ...]) -> SignatureEnvelope:
    """Return the signature file of a snapshot with these signatures."""
    return SignatureEnvelope(payload=base64.b64encode(statement(digest)).decode(), signatures=signatures)


def statement(digest: str) -> bytes:
    """Return the signed statement for the snapshot with this digest."""
    subject = [{"name": SNAPSHOT_FILE, "digest": {"sha256": digest}}]
    told = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": {}}
    return canonical_json(told).encode()


def read_envelope(content: bytes, digest: str, subject: str) -> SignatureEnvelope:
    """Return the parsed signature file of the snapshot `digest`. Keys are not checked.

    Malformed signatures in it are left out: they do not affect the others.

    Raises:
        SignatureInvalid: the file can't be read, or is of another snapshot.
    """
    try:
        envelope = SignatureEnvelope.model_validate(_well_formed(content))
        payload = base64.b64decode(envelope.payload, validate=True)
    except (ValueError, RecursionError) as error:
        msg = f"{subject}: its signature can't be read ({_first_fault(error)}); sign it with `ipnext sign`"
        raise SignatureInvalid(msg) from error
    if payload != statement(digest):
        other = _digest_in(payload)
        msg = (
            f"{subject}: the signature is of snapshot {other:.16}, this one is {digest:.16}: "
            "its manifest changed after it was signed, or the file belongs to another snapshot; sign it again"
        )
        raise SignatureInvalid(msg)
    return envelope


def _well_formed(content: bytes) -> Any:
    """Return the document of a signature file without its invalid signatures."""
    found = json.loads(content)
    if not isinstance(found, dict) or not isinstance(found.get("signatures"), list):
        return found
    return found | {"signatures": [one for one in found["signatures"] if _is_signature(one)]}


def _is_signature(document: object) -> bool:
    try:
        return EnvelopeSignature.model_validate(document).fault is None
    except ValidationError:
        return False


def _digest_in(payload: bytes) -> str:
    try:
        found: Any = json.loads(payload)["subject"][0]["digest"]["sha256"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "none"
    return str(found)


def _first_fault(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_line(error, "file")
    if isinstance(error, RecursionError | json.JSONDecodeError | UnicodeDecodeError):
        return "it is no JSON"
    return f"payload: {error}"
