"""The check `signature`: who signed what is published, and that no manifest skips it."""

import pytest

from activities.state.desired import read_facts
from activities.state.replica_sets import wanted_deployments
from activities.state.wave_state import ModelWaveState
from activities.validation.activities import BUILT_IN
from activities.validation.runs import run_validators
from activities.validation.signing import check_signatures
from activities.validation.validator import Candidate
from ipnext.artifacts.signing import sign_digest, write_key_pair
from ipnext.model.lifecycle.status import Reason

pytestmark = pytest.mark.trust


@pytest.fixture
def keys(tmp_path):
    write_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    return tmp_path / "key.pem", {"validation": {"signers": {"publicKeys": [(tmp_path / "key.pub.pem").read_text()]}}}


def sign(candidate: Candidate, key, *parts):
    for part in parts:
        digest = candidate.snapshots[part].digest
        candidate.artifacts.put_signature(digest, sign_digest(digest, key))


def test_a_generation_passes_where_every_part_is_signed(candidate, keys):
    key, spec = keys
    built = candidate(spec=spec)
    sign(built, key, "sparse", "dense")
    results = list(check_signatures(built))
    assert [(r.subject, r.passed) for r in results] == [("dense", True), ("sparse", True)]
    assert all("signed by" in r.message for r in results)


def test_the_part_that_nobody_signed_is_named(candidate, keys):
    key, spec = keys
    built = candidate(spec=spec)
    sign(built, key, "sparse")
    (refused,) = [r for r in check_signatures(built) if not r.passed]
    assert (refused.subject, refused.reason) == ("dense", Reason.SIGNATURE_INVALID)
    assert "has no signature" in refused.message


def test_a_model_that_asks_for_no_signature_needs_none(candidate):
    assert all(result.passed for result in check_signatures(candidate()))


def test_the_check_can_t_be_skipped(candidate, keys):
    _, spec = keys
    skipping = {"validation": {**spec["validation"], "skip": {"signature": "in a hurry"}}}
    results = list(run_validators(candidate(spec=skipping), BUILT_IN))
    assert [(r.check, r.passed) for r in results] == [("skip", False)]


def test_hosts_are_told_who_has_to_have_signed(house, keys):
    _, spec = keys
    house.apply("ranker", **spec)
    house.publish("ranker", 1)
    with house.store.read() as repository:
        facts = read_facts(repository, "ranker", 1)
    state = ModelWaveState(counts={(("dense", "us-east", "cpu"), 1): 1})
    (deployment,) = wanted_deployments(facts, state)
    assert deployment.holds[0].signers == facts.manifest.spec.validation.signers is not None
