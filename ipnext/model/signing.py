"""Who may sign a model's snapshots, and the form of a signature file.

A signature is a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement whose one subject is the
digest of the snapshot's manifest. The manifest names the SHA-256 and size of every file, so the signature covers every byte.
"""

import base64
import json
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ipnext.errors import SignatureInvalid
from ipnext.model.registry import SNAPSHOT_FILE
from ipnext.model.value import Value, Written, canonical_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:ipnext:snapshot:v1"
PAYLOAD_TYPE: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"

LARGEST_SIGNATURE_BYTES = 64 << 10
MOST_SIGNATURES = 32

_PEM_START = "-----BEGIN PUBLIC KEY-----"


class SignerPolicy(Written):
    """`spec.validation.signers`: keys of which one has to have signed each snapshot that is published."""

    public_keys: tuple[str, ...] = Field(min_length=1, max_length=32)
    """PEM texts of public keys (`BEGIN PUBLIC KEY`), as `ipnext keygen` writes them."""
    required: bool = True
    """False: a snapshot without a signature passes, one with a wrong signature does not."""

    @model_validator(mode="after")
    def _are_public_keys(self) -> Self:
        for index, key in enumerate(self.public_keys):
            if not key.strip().startswith(_PEM_START):
                first = key.strip().splitlines()[0][:40] if key.strip() else ""
                msg = f"publicKeys.{index}: begins with {first!r}; allowed: a PEM text that begins with {_PEM_START!r}"
                raise ValueError(msg)
        return self


class EnvelopeSignature(Value):
    """One signature of an envelope: the key's id, and the signature in base64."""

    keyid: str = Field(min_length=1, max_length=128)
    sig: str = Field(min_length=1, max_length=2048)


class SignatureEnvelope(Written):
    """`snapshot.json.sig`. `payload` is the statement in base64."""

    payload_type: Literal["application/vnd.in-toto+json"] = PAYLOAD_TYPE
    payload: str = Field(max_length=4096)
    signatures: tuple[EnvelopeSignature, ...] = Field(min_length=1, max_length=MOST_SIGNATURES)

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return canonical_json(self).encode()

    def joined(self, other: Self) -> Self:
        """All signatures of both; one key signs once, and what is there stays."""
        mine = {one.keyid for one in self.signatures}
        more = tuple(one for one in other.signatures if one.keyid not in mine)
        return self.model_copy(update={"signatures": (*self.signatures, *more)[:MOST_SIGNATURES]})


def statement(digest: str) -> bytes:
    """What is signed for the snapshot with this digest."""
    subject = [{"name": SNAPSHOT_FILE, "digest": {"sha256": digest}}]
    told = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": {}}
    return canonical_json(told).encode()


def read_envelope(content: bytes, digest: str, subject: str) -> SignatureEnvelope:
    """Parse a signature file, and see that it is of the snapshot `digest`. SignatureInvalid; keys are not looked at."""
    try:
        envelope = SignatureEnvelope.model_validate_json(content)
        payload = base64.b64decode(envelope.payload, validate=True)
    except ValueError as error:  # of pydantic, or of base64
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


def _digest_in(payload: bytes) -> str:
    try:
        found: Any = json.loads(payload)["subject"][0]["digest"]["sha256"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "none"
    return str(found)


def _first_fault(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return f"{'.'.join(str(step) for step in fault['loc']) or 'file'}: {fault['msg']}"
    return f"payload: {error}"
