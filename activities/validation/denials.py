"""Validator of the deny-list: no digest of a published snapshot is denied."""

from collections.abc import Iterator

from activities.validation.validator import Candidate, fail_check, pass_check
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason

DENIED = "denied"


def check_denials(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield one result for each snapshot."""
    for part, snapshot in sorted(candidate.snapshots.items()):
        denial = candidate.denials.get(part)
        subject = f"snapshot {snapshot.number} of {snapshot.model}.{part}"
        if denial is None:
            yield pass_check(DENIED, part, "no digest of it is denied")
        else:
            yield fail_check(DENIED, part, Reason.SNAPSHOT_DENIED, f"{subject}: {denial.text}")
