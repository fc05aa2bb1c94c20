"""Signs snapshots and verifies their signatures.

Ed25519 (or another kind of key) in DSSE envelopes, by securesystemslib. Used by `ipnext sign`, by validation, and by
hosts before they load. The library is imported only when a key is used.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ipnext.artifacts.cosign import signed_bytes
from ipnext.errors import InvalidInput, SignatureInvalid, Unavailable
from ipnext.model.registry.registry import SIGNATURE_FILE
from ipnext.model.registry.signing import (
    PAYLOAD_TYPE,
    CosignProof,
    EnvelopeSignature,
    SignatureEnvelope,
    SignerPolicy,
    read_envelope,
    statement,
)

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

INSTALL = "pip install 'ipnext[signing]'"


MANIFEST_KEYS = "spec.validation.signers.publicKeys"


def check_signature(
    policy: SignerPolicy | None, digest: str, content: bytes | None, subject: str, *, keys: str = MANIFEST_KEYS
) -> str:
    """Judge a snapshot's signature file by a policy; return the result as text.

    `keys` is the field that names its keys. SignatureInvalid: none if one is required, one of another snapshot, or none
    by an allowed key.
    """
    if policy is None:
        return "no signature is asked for"
    if content is None:
        if policy.required:
            needs = keys.removesuffix(".publicKeys")
            msg = f"{subject}: has no signature, and {needs} requires one; sign it with `ipnext sign`, publish it again"
            raise SignatureInvalid(msg)
        return "not signed; no signature is required"
    envelope = read_envelope(content, digest, subject)
    allowed = check_keys(policy, keys)
    signer = next(iter(signers(envelope, digest, allowed)), None)
    claimed = {one.keyid for one in envelope.signatures} & {key.keyid for key in allowed}
    if signer is None and not claimed and not policy.required:
        return "signed by other keys; no signature is required"
    if signer is None:
        given = ", ".join(f"{one.keyid:.12}" for one in envelope.signatures)
        known = ", ".join(f"{key.keyid:.12}" for key in allowed)
        msg = f"{subject}: no valid signature by an allowed key; it is signed by {given}, {keys} are {known}"
        raise SignatureInvalid(msg)
    return f"signed by {signer:.12}"


def check_keys(policy: SignerPolicy, keys: str) -> "list[SSlibKey]":
    """Return the keys of a policy. SignatureInvalid names `keys` and the index of an invalid one."""
    return [_public_key(key, f"{keys}.{index}") for index, key in enumerate(policy.public_keys)]


def read_keys(pems: Iterable[str]) -> "Mapping[str, SSlibKey]":
    """Return public keys by their ids. PEM texts that are no keys are left out."""
    found = {}
    for pem in frozenset(pems):
        with suppress(SignatureInvalid):
            key = _public_key(pem, "")
            found[key.keyid] = key
    return found


def signers(envelope: SignatureEnvelope, digest: str, allowed: "Iterable[SSlibKey]") -> Mapping[str, EnvelopeSignature]:
    """Map the id of each allowed key that signed the statement of `digest` to its signature.

    Every signature is judged separately: one of another key, or an invalid one, does not affect the others.
    """
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - a slow import

    keys = {key.keyid: key for key in allowed}
    plain = Envelope(statement(digest), PAYLOAD_TYPE, {}).pae()
    found: dict[str, EnvelopeSignature] = {}
    for one in envelope.signatures:
        if (
            one.keyid in keys
            and one.keyid not in found
            and _is_by(one, keys[one.keyid], _signed_bytes(one, digest, plain))
        ):
            found[one.keyid] = one
    return found


def find_cosigner(proof: CosignProof, sig: str, digest: str, keys: "Iterable[SSlibKey]") -> EnvelopeSignature | None:
    """Return cosign's signature of the snapshot `digest`, with the key's id; None if it is by none of the keys.

    Raises SignatureInvalid if it is no signature of the snapshot, by any key.
    """
    one = EnvelopeSignature(keyid="", sig=sig, cosign=proof)
    content = signed_bytes(proof, digest)
    found = next((key.keyid for key in keys if _is_by(one, key, content)), None)
    return None if found is None else one.model_copy(update={"keyid": found})


def _signed_bytes(signature: EnvelopeSignature, digest: str, plain: bytes) -> bytes | None:
    """Return what a signature is over; None if that does not lead to the snapshot."""
    if signature.cosign is None:
        return plain
    try:
        return signed_bytes(signature.cosign, digest)
    except SignatureInvalid:
        return None


def _is_by(signature: EnvelopeSignature, key: "SSlibKey", content: bytes | None) -> bool:
    if content is None:
        return False
    from securesystemslib.exceptions import Error  # noqa: PLC0415 - a slow import
    from securesystemslib.signer import Signature  # noqa: PLC0415 - a slow import

    try:
        key.verify_signature(Signature(key.keyid, signature.content.hex()), content)
    except (Error, ValueError):
        return False
    return True


def sign_digest(digest: str, key: Path) -> SignatureEnvelope:
    """Sign the statement of a snapshot with the private key of a PEM file. InvalidInput if the file is another one."""
    _check_library()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - a slow import
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - a slow import
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415 - a slow import

    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
        signer = CryptoSigner(private)
    except (OSError, TypeError, ValueError) as error:
        msg = (
            f"--key: {key}: {error}; allowed: a PEM file with a private key without a password, "
            "as `ipnext keygen` writes it"
        )
        raise InvalidInput(msg, field="key", value=str(key)) from error
    envelope = Envelope(statement(digest), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return SignatureEnvelope.model_validate(envelope.to_dict())


def write_key_pair(private: Path, public: Path) -> str:
    """Write an Ed25519 key pair, the private key readable only by its owner; return the key's id.

    InvalidInput if a file exists.
    """
    _check_library()
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415 - a slow import
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - a slow import

    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    told = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    _write_new(private, secret, mode=0o600)
    _write_new(public, told, mode=0o644)
    return _public_key(told.decode(), "key").keyid


def signature_in(directory: Path) -> bytes | None:
    """Return the signature file of a snapshot directory, if there is one."""
    try:
        return (directory / SIGNATURE_FILE).read_bytes()
    except FileNotFoundError:
        return None


def _public_key(pem: str, field: str) -> "SSlibKey":
    _check_library()
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - a slow import
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415 - a slow import
    from securesystemslib.signer import SSlibKey  # noqa: PLC0415 - a slow import

    try:
        return SSlibKey.from_crypto(load_pem_public_key(pem.encode()))
    except (ValueError, UnsupportedAlgorithm) as error:
        msg = f"{field}: {error}; allowed: PEM texts of Ed25519, ECDSA or RSA keys"
        raise SignatureInvalid(msg) from error


def _check_library() -> None:
    try:
        import cryptography  # noqa: F401, PLC0415 - a slow import
        import securesystemslib.signer  # noqa: F401, PLC0415 - a slow import
    except ImportError as error:
        msg = f"signatures need a library that is not installed ({error.name}); try: {INSTALL}"
        raise Unavailable(msg) from error


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        msg = f"{path}: {error.strerror}; a key is never written over another file"
        raise InvalidInput(msg, field="key", value=str(path)) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
