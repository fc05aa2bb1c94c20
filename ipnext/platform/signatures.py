"""Policy of stored signatures: by keys that a model of the caller's owners trusts, or that the operator trusts.

Any uploader may name any snapshot by its digest. Only valid signatures are stored, one for each key, so that no
uploader can fill up the space of another's signature.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from ipnext.artifacts.layout import snapshot_uri
from ipnext.artifacts.native_code import SETTING, read_native_signers
from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.signing import MANIFEST_KEYS, find_cosigner, read_keys, signers
from ipnext.errors import SignatureInvalid
from ipnext.model.registry.signing import (
    MOST_SIGNATURES,
    CosignProof,
    EnvelopeSignature,
    SignatureEnvelope,
    check_form,
    read_envelope,
)
from ipnext.store.store import Store

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey
else:
    SSlibKey = Any

_TURN: Final = threading.Lock()
"""Uploads are judged by the signatures stored before each. Those of two processes at once may exceed a limit by one,
and lose nothing."""

ModelKeys = tuple[str, str, Mapping[str, SSlibKey]]
"""Model, its owner, and the keys that it names by their ids."""

_READ: Final[WeakKeyDictionary[Store, tuple[tuple[int, int], tuple[ModelKeys, ...]]]] = WeakKeyDictionary()
"""Store -> the basis of its manifests at the last read, and their keys."""


MayPublish = Callable[[str, str], bool]
"""Whether the caller may publish a model of an owner."""


@dataclass(frozen=True, slots=True)
class SignatureKeeper:
    """The stored signatures of one platform."""

    store: Store
    artifacts: ArtifactStore
    native_library_keys_file: Path | None

    def keep(self, digest: str, envelope: SignatureEnvelope, may_publish: MayPublish) -> None:
        """Store signatures of a committed snapshot in addition to its present ones.

        ArtifactMissing if the snapshot is missing; SignatureInvalid if the envelope is of another one, or one of its
        signatures is malformed, wrong, or by a key that no model trusts which the caller may publish. None of it is
        stored then.
        """
        subject, uri = f"snapshot {digest:.16}", snapshot_uri(self.artifacts.uri, digest)
        check_form(envelope, subject)
        read_envelope(envelope.content, digest, subject)
        self.artifacts.manifest(uri)
        trust = self._trust()
        with _TURN:
            content = self.artifacts.signature(uri)
            known = None if content is None else read_envelope(content, digest, subject)
            added = _Judgement(may_publish, digest, known, trust).find_new(envelope)
            if added:
                more = envelope.model_copy(update={"signatures": added})
                self.artifacts.put_signature(digest, more, keep=lambda: frozenset(self._trust().all))

    def find_cosigned(
        self, digest: str, owner: str, signatures: Iterable[tuple[str, CosignProof]]
    ) -> tuple[EnvelopeSignature, ...]:
        """Return the signatures by cosign that a key of the owner's models made, or of the operator.

        Those of other keys, and those of other snapshots, are left: a registry has signatures for others, too.
        Raises SignatureInvalid if there are some, and none leads to the snapshot `digest`.
        """
        trust = self._trust()
        keys = {**trust.operator, **trust.of_owner(owner)}.values()
        found: list[EnvelopeSignature | None] = []
        fault: SignatureInvalid | None = None
        for sig, proof in signatures:
            try:
                found.append(find_cosigner(proof, sig, digest, keys))
            except SignatureInvalid as error:
                fault = error
        if fault is not None and not found:
            raise fault
        return tuple(dict.fromkeys(one for one in found if one is not None))

    def _trust(self) -> "_Trust":
        policy = read_native_signers(self.native_library_keys_file)
        return _Trust({} if policy is None else read_keys(policy.public_keys), _model_keys(self.store))


@dataclass(frozen=True, slots=True)
class _Trust:
    """Keys by their ids: of the operator, and of each model with its owner."""

    operator: Mapping[str, SSlibKey]
    models: tuple[ModelKeys, ...]

    @property
    def all(self) -> Mapping[str, SSlibKey]:
        """Every trusted key."""
        found = dict(self.operator)
        for _, _, keys in self.models:
            found |= keys
        return found

    def of_owner(self, owner: str) -> Mapping[str, SSlibKey]:
        """Return the keys of an owner's models."""
        return {name: key for _, of, keys in self.models if of == owner for name, key in keys.items()}


def _model_keys(store: Store) -> tuple[ModelKeys, ...]:
    """Return the keys of all models, read again only if a manifest has changed since.

    For thousands of models that takes seconds.
    """
    with store.read() as unit:
        basis = unit.manifests_basis()
        last = _READ.get(store)
        if last is not None and last[0] == basis:
            return last[1]
        asked = unit.signer_keys()
    found = tuple((name, owner, read_keys(keys)) for name, owner, keys in asked)
    _READ[store] = basis, found
    return found


@dataclass(frozen=True, slots=True)
class _Judgement:
    """Judges a caller's additions to a snapshot's signatures."""

    may_publish: MayPublish
    digest: str
    known: SignatureEnvelope | None
    trust: _Trust

    def find_new(self, envelope: SignatureEnvelope) -> tuple[EnvelopeSignature, ...]:
        """Return the new signatures, one for each key. SignatureInvalid if one may not be stored."""
        there = () if self.known is None else self.known.signatures
        signed = set(self._signers(there, self.trust.all))
        found: dict[str, EnvelopeSignature] = {}
        for index, one in enumerate(envelope.signatures):
            if one in there:
                continue
            owners = self._check(one, f"snapshot {self.digest:.16}: signatures.{index}")
            if one.keyid not in signed | found.keys():
                self._check_share(owners, [*there, *found.values()])
                found[one.keyid] = one
        return tuple(found.values())

    def _check(self, one: EnvelopeSignature, place: str) -> frozenset[str]:
        """Return the caller's owners that trust the signature's key; none if the operator trusts it."""
        owners = frozenset(
            owner for name, owner, keys in self.trust.models if one.keyid in keys and self.may_publish(name, owner)
        )
        if not owners and one.keyid not in self.trust.operator:
            msg = (
                f"{place}: no model that you may publish trusts key {one.keyid:.12}; allowed: keys of {MANIFEST_KEYS} "
                f"of such a model, and those of {SETTING}; apply the manifest that names the key first"
            )
            raise SignatureInvalid(msg)
        if not self._signers((one,), self.trust.all):
            msg = f"{place}: is no valid signature of this snapshot by key {one.keyid:.12}; sign it with `ipnext sign`"
            raise SignatureInvalid(msg)
        return frozenset() if one.keyid in self.trust.operator else owners

    def _check_share(self, owners: frozenset[str], there: Iterable[EnvelopeSignature]) -> None:
        """Leave space for other owners."""
        there = tuple(there)
        counts = [len(self._signers(there, self.trust.of_owner(owner))) for owner in owners]
        if counts and min(counts) >= MOST_SIGNATURES:
            msg = (
                f"snapshot {self.digest:.16}: has signatures by {min(counts)} keys of owner {min(owners)!r}; "
                f"allowed: {MOST_SIGNATURES}"
            )
            raise SignatureInvalid(msg)

    def _signers(self, given: tuple[EnvelopeSignature, ...], keys: Mapping[str, SSlibKey]) -> tuple[str, ...]:
        if not given:
            return ()
        envelope = SignatureEnvelope(payload="", signatures=given)
        return tuple(signers(envelope, self.digest, keys.values()))
