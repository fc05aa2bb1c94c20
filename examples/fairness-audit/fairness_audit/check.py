"""The check: a part that the audit is for has a replay set. It runs in the validation, before the stage."""

from collections.abc import Iterator

from activities.validation.validator import Candidate, FunctionValidator, fail_check, pass_check
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.optimization import REPLAY_FILE

NAME = "fairness-replay"
STAGE = "fairness-audit"


def check_replay(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield a result for each part that the manifest has audited."""
    parts = [entry.settings.get("part") for entry in candidate.manifest.spec.lifecycle if entry.stage == STAGE]
    for part in dict.fromkeys(parts):
        snapshot = candidate.snapshots.get(str(part))
        if snapshot is None:
            known = ", ".join(sorted(candidate.snapshots))
            yield fail_check(NAME, str(part), Reason.SCHEMA_MISMATCH, f"is no part of the model; allowed: {known}")
        elif any(file.path == REPLAY_FILE for file in snapshot.manifest.files):
            yield pass_check(NAME, str(part))
        else:
            message = f"the snapshot has no {REPLAY_FILE}: export it with export_model(..., replay=...)"
            yield fail_check(NAME, str(part), Reason.SCHEMA_MISMATCH, message)


check = FunctionValidator(NAME, check_replay)
