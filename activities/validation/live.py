"""The place of the check `live-latency` in a report: the transition makes it, once replicas are up."""

from collections.abc import Iterator

from activities.validation.validator import Candidate, skip_check
from ipnext.model.lifecycle.checks import LIVE_LATENCY, CheckResult


def check_live(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield one skipped result; `activities.transition.live.timing` replaces it."""
    asked = candidate.manifest.spec.validation.live_latency is not None
    told = "made on live replicas, before traffic moves" if asked else "the manifest has no spec.validation.liveLatency"
    yield skip_check(LIVE_LATENCY, candidate.manifest.name, told)
