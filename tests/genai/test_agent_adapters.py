"""Adapters in a whole region: what the agent tells of one that an engine does not take."""

import pytest

from ipnext.model.deployment import HeldSnapshot
from tests.genai.hosts import until
from tests.genai.regions import region

pytestmark = pytest.mark.timeout(300)


def test_an_adapter_that_fails_is_told_as_the_adapters_failure(shelf, tmp_path):
    def held(number, **more):
        source = shelf.published[number]
        digest = source.manifest.digest
        return HeldSnapshot(snapshot=number, digest=digest, uri=source.uri, generations=(1,), **more)

    with region(shelf, tmp_path) as bed:
        bed.deploy({1: 1}, holds=(held(1, adapters=1), held(13, part="style", adapter=True)))
        replica = until(lambda: next((r for r in bed.agent.replicas(bed.key) if r.failures), None))
        (failure,) = replica.failures
        assert (failure.adapter, failure.snapshot, failure.code) == ("style", 13, "LoadFailed")
        assert replica.ready == ()
