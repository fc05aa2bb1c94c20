"""The check `denied`: no generation with a denied snapshot passes, and no manifest skips it."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from temporalio.testing import ActivityEnvironment

from activities.validation.activities import BUILT_IN, EARLY, ValidationActivities
from activities.validation.denials import DENIED, check_denials
from activities.validation.runs import run_validators
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.denials import Denial

pytestmark = pytest.mark.trust

POISONED = Denial(number=1, digest="a" * 64, reason="poisoned", denied_by="ann", denied_at=datetime.now(UTC))


def test_the_denied_part_is_named_with_the_reason(candidate):
    built = replace(candidate(), denials={"dense": POISONED})
    (refused,) = [each for each in check_denials(built) if not each.passed]
    assert (refused.subject, refused.reason) == ("dense", Reason.SNAPSHOT_DENIED)
    assert "is denied: poisoned" in refused.message


def test_the_check_is_required_before_regions_fetch_and_can_t_be_skipped(candidate):
    assert [each.required for each in (*BUILT_IN, *EARLY) if each.name == DENIED] == [True, True]
    skipping = {"validation": {"skip": {DENIED: "in a hurry"}}}
    results = list(run_validators(candidate(spec=skipping), BUILT_IN))
    assert [(each.check, each.passed) for each in results] == [("skip", False)]


def test_a_digest_that_is_denied_after_its_publish_is_refused_by_the_validation(house):
    house.apply("ranker")
    house.publish("ranker", 1)
    with house.store.begin() as unit:
        snapshot = unit.snapshot("ranker", "dense", 1)
        unit.put_denial(snapshot.manifest.files[0].sha256, reason="poisoned", denied_by="ann")
    stage = StageInput(model="ranker", change_id="c", generation=1, kind=ChangeKind.PUBLISH)
    activities = ValidationActivities(house.store, house.artifacts)
    report = ActivityEnvironment().run(activities.validate_generation, stage)
    assert report.refusal is not None
    assert (report.refusal.check, report.refusal.reason) == (DENIED, Reason.SNAPSHOT_DENIED)
