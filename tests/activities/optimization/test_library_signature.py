"""What the step `compile` derives is signed by the operator's key of the workers, or not derived."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.optimization.activities import OptimizationActivities
from ipnext.artifacts.native_code import LibrarySigner, check_native_signature, library_signer, read_native_signers
from ipnext.artifacts.signing import write_key_pair
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason

pytestmark = pytest.mark.trust

COMPILED = {
    "optimization": [{"compile": {"part": "sparse"}}],
    "parts": [
        {"name": name, "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}], "settings": settings}
        for name, settings in (("sparse", {"compile": True}), ("dense", {}))
    ],
}


@pytest.fixture
def keys(tmp_path):
    """The private key of workers, and the file that hosts trust."""
    write_key_pair(tmp_path / "build.pem", tmp_path / "trusted.pem")
    return tmp_path / "build.pem", tmp_path / "trusted.pem"


@pytest.fixture
def optimize(house):
    house.apply("ranker", **COMPILED)
    house.publish("ranker", 1, change_id="c1")

    def call(signer):
        activities = OptimizationActivities(
            house.store, house.artifacts, deriver=house.deriver, tools=lambda _: {}, signer=signer
        )
        stage = StageInput(model="ranker", change_id="c1", kind=ChangeKind.PUBLISH, generation=1)
        return ActivityEnvironment().run(activities.optimize_generation, stage)

    return call


def derived(house):
    with house.store.read() as unit:
        return unit.snapshot("ranker", "sparse", unit.generation("ranker", 1).derived.parts["sparse"])


def test_hosts_that_trust_the_key_find_its_signature_with_the_snapshot(house, optimize, keys, tmp_path):
    assert not optimize(LibrarySigner(*keys)).refused
    fetched = house.artifacts.fetch(derived(house).uri, tmp_path / "host")
    assert check_native_signature(read_native_signers(keys[1]), derived(house).manifest, fetched)


def test_without_a_key_nothing_is_compiled(house, optimize):
    found = optimize(None)
    assert (found.refused, found.reason) == (True, Reason.OPTIMIZATION_REFUSED)
    assert "IPNEXT_NATIVE_LIBRARY_SIGNING_KEY_FILE is not set" in found.summary
    assert house.deriver.calls == []


def test_the_same_key_derives_once_and_another_one_again(house, optimize, keys, tmp_path):
    for _ in range(2):
        optimize(LibrarySigner(*keys))
    assert len(house.deriver.calls) == 1
    write_key_pair(tmp_path / "next.pem", tmp_path / "next.pub.pem")
    optimize(LibrarySigner(tmp_path / "next.pem", tmp_path / "next.pub.pem"))
    assert len(house.deriver.calls) == 2
    fetched = house.artifacts.fetch(derived(house).uri, tmp_path / "host")
    check_native_signature(read_native_signers(tmp_path / "next.pub.pem"), derived(house).manifest, fetched)


def test_a_worker_does_not_start_with_a_key_that_hosts_do_not_trust(keys, tmp_path):
    assert library_signer(None, None) is None
    write_key_pair(tmp_path / "other.pem", tmp_path / "other.pub.pem")
    with pytest.raises(InvalidInput, match="hosts do not trust its key; allowed: a private key whose public key is in"):
        library_signer(tmp_path / "other.pem", keys[1])
    with pytest.raises(InvalidInput, match="IPNEXT_NATIVE_LIBRARY_KEYS_FILE is not set, so hosts run no library"):
        library_signer(keys[0], None)
    with pytest.raises(InvalidInput, match=r"IPNEXT_NATIVE_LIBRARY_SIGNING_KEY_FILE: .*gone.pem holds no"):
        library_signer(tmp_path / "gone.pem", keys[1])


def test_a_key_that_others_may_read_signs_nothing(keys):
    keys[0].chmod(0o640)
    with pytest.raises(InvalidInput, match="may be read by others than its user; `chmod 600` it"):
        library_signer(*keys)
    keys[0].chmod(0o600)
    assert library_signer(*keys) is not None
