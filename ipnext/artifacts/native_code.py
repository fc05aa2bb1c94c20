"""Trust in native code: the public keys that the operator of the platform accepts for compiled libraries.

Used by validation and by hosts. A manifest's signers (`spec.validation.signers`) have no effect on native code: anyone
who may apply a manifest chooses them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ipnext.artifacts.signing import check_keys, check_signature, sign_digest, signature_in
from ipnext.errors import InvalidInput, SignatureInvalid
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.registry.signing import SignatureEnvelope, SignerPolicy

SETTING = "IPNEXT_NATIVE_LIBRARY_KEYS_FILE"

SIGNING_SETTING = "IPNEXT_NATIVE_LIBRARY_SIGNING_KEY_FILE"

_SAMPLE = "0" * 64
_KEY = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def read_native_signers(file: Path | None) -> SignerPolicy | None:
    """Return the keys of `file`, PEM texts one after another; None if no file is set: then no library runs.

    InvalidInput names the setting if the file can't be read or holds no key, too many, or one of another kind.
    """
    if file is None:
        return None
    allowed = "a file with 1 to 32 public keys in PEM, as `ipnext keygen` writes them, one after another"
    try:
        policy = SignerPolicy(public_keys=tuple(_KEY.findall(file.read_text())))
        check_keys(policy, SETTING)
    except (OSError, UnicodeDecodeError, ValidationError, SignatureInvalid) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no such keys, another one, or too many"
        msg = f"{SETTING}: {file}: {reason}; allowed: {allowed}"
        raise InvalidInput(msg, field=SETTING, value=str(file)) from error
    return policy


def check_native_signature(policy: SignerPolicy, manifest: SnapshotManifest, directory: Path) -> str:
    """Return which of those keys signed the snapshot in `directory`, as text. SignatureInvalid if none did."""
    return check_signature(policy, manifest.digest, signature_in(directory), "the compiled snapshot", keys=SETTING)


@dataclass(frozen=True, slots=True)
class LibrarySigner:
    """Signs the snapshots that the platform compiles, with a private key that the operator gives to workers."""

    key: Path
    """A PEM file, read again for each snapshot."""
    trusted: Path | None
    """The file of the setting IPNEXT_NATIVE_LIBRARY_KEYS_FILE."""

    @property
    def key_id(self) -> str:
        """Identifies the key. InvalidInput as for `sign`."""
        return self.sign(_SAMPLE).signatures[0].keyid

    def sign(self, digest: str) -> SignatureEnvelope:
        """Sign a snapshot. InvalidInput if the file holds no private key, or one that hosts do not trust."""
        allowed = f"a private key whose public key is in the file of {SETTING}"
        if _is_open_to_others(self.key):
            msg = f"{SIGNING_SETTING}: {self.key} may be read by others than its user; `chmod 600` it"
            raise InvalidInput(msg, field=SIGNING_SETTING, value=str(self.key))
        try:
            envelope = sign_digest(digest, self.key)
        except InvalidInput as error:
            msg = f"{SIGNING_SETTING}: {self.key} holds no private key that can be read; allowed: {allowed}"
            raise InvalidInput(msg, field=SIGNING_SETTING, value=str(self.key)) from error
        try:
            policy = read_native_signers(self.trusted)
            if policy is None:
                msg = f"{SIGNING_SETTING}: {SETTING} is not set, so hosts run no library; allowed: {allowed}"
                raise InvalidInput(msg, field=SIGNING_SETTING, value=str(self.key))
            check_signature(policy, digest, envelope.content, "a compiled snapshot", keys=SETTING)
        except SignatureInvalid as error:
            msg = f"{SIGNING_SETTING}: {self.key}: hosts do not trust its key; allowed: {allowed}"
            raise InvalidInput(msg, field=SIGNING_SETTING, value=str(self.key)) from error
        return envelope


def _is_open_to_others(key: Path) -> bool:
    """Check the rights of a key's file. One that can't be looked at can't be read either."""
    try:
        return bool(key.stat().st_mode & 0o077)
    except OSError:
        return False


def library_signer(key: Path | None, trusted: Path | None) -> LibrarySigner | None:
    """Return the signer of a key file, tried once; None without a file. InvalidInput as for `LibrarySigner.sign`."""
    if key is None:
        return None
    signer = LibrarySigner(key, trusted)
    signer.sign(_SAMPLE)
    return signer
