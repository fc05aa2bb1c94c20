"""Trust in native code: the public keys that the operator of the platform accepts for compiled libraries.

Used by validation and by hosts. A manifest's signers (`spec.validation.signers`) have no effect on native code: anyone
who may apply a manifest chooses them.
"""

import re
from pathlib import Path

from pydantic import ValidationError

from ipnext.artifacts.signing import check_keys, check_signature, signature_in
from ipnext.errors import InvalidInput, SignatureInvalid
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.registry.signing import SignerPolicy

SETTING = "IPNEXT_NATIVE_LIBRARY_KEYS_FILE"

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
