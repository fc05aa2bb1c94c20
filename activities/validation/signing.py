"""Validator of signatures: each published snapshot is signed by a key that the manifest allows, if it names any."""

from collections.abc import Iterator

from activities.validation.validator import Candidate, fail_check, pass_check
from ipnext.artifacts.signing import check_signature
from ipnext.errors import SignatureInvalid
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason

SIGNATURE = "signature"


def check_signatures(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield one result for each snapshot. The digests were checked before, so that the signature covers every byte."""
    policy = candidate.manifest.spec.validation.signers
    for part, snapshot in sorted(candidate.snapshots.items()):
        content = candidate.artifacts.signature(snapshot.uri) if policy is not None else None
        subject = f"snapshot {snapshot.number} of {snapshot.model}.{part}"
        try:
            yield pass_check(SIGNATURE, part, check_signature(policy, snapshot.digest, content, subject))
        except SignatureInvalid as error:
            yield fail_check(SIGNATURE, part, Reason.SIGNATURE_INVALID, error.message)
