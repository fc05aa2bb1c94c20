"""Signatures of the versions that sources bring: who signed is judged before a version is published."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.signing import check_signature
from ipnext.artifacts.sources import ArtifactSource, signature_of
from ipnext.errors import SignatureInvalid
from ipnext.model.registry.registry import SnapshotSource
from ipnext.model.registry.signing import CosignProof, SignatureEnvelope, SignerPolicy, envelope_of
from ipnext.platform.signatures import SignatureKeeper


@runtime_checkable
class CosignedSource(Protocol):
    """Files of an image, next to which there may be signatures by cosign."""

    def find_signatures(self) -> tuple[tuple[str, CosignProof], ...]:
        """Return each signature in base64, and what it is over. Raises SignatureInvalid or Unavailable."""


@dataclass(frozen=True, slots=True)
class VersionSignatures:
    """Stores the signatures of versions, and judges them by the policy of their model."""

    artifacts: ArtifactStore
    keeper: SignatureKeeper

    def store(self, owner: str, digest: str, envelope: SignatureEnvelope) -> None:
        """Store signatures by keys of the owner's models. SignatureInvalid if one is by none of them."""
        self.keeper.keep(digest, envelope, lambda _, of: of == owner)

    def store_cosigned(self, owner: str, policy: SignerPolicy | None, content: SnapshotSource, source: object) -> None:
        """Store the signatures by cosign of a version's image, if its model asks for signatures."""
        if policy is None or not isinstance(source, CosignedSource):
            return
        found = self.keeper.find_cosigned(content.manifest.digest, owner, source.find_signatures())
        if found:
            self.store(owner, content.manifest.digest, envelope_of(content.manifest.digest, found))

    def store_later_ones(
        self, owner: str, policy: SignerPolicy | None, content: SnapshotSource, source: ArtifactSource
    ) -> None:
        """Store what was signed since the version was read."""
        envelope = signature_of(source, content.manifest)
        if envelope is not None:
            self.store(owner, content.manifest.digest, envelope)
        self.store_cosigned(owner, policy, content, source)

    def is_signed(self, policy: SignerPolicy | None, content: SnapshotSource) -> bool:
        """Whether a version may be published by its signatures."""
        try:
            self.check(policy, content)
        except SignatureInvalid:
            return False
        return True

    def check(self, policy: SignerPolicy | None, content: SnapshotSource) -> None:
        """Check who signed a version in the artifact store. Raises SignatureInvalid."""
        if policy is not None:
            subject = f"snapshot {content.manifest.digest:.16}"
            check_signature(policy, content.manifest.digest, self.artifacts.signature(content.uri), subject)
