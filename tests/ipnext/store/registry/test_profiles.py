"""Measurements, on both engines."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.errors import NotFound
from ipnext.model.registry.profile import Conditions, LoadStep, Profile

START = datetime(2026, 1, 1, tzinfo=UTC)


def profile(tokens, *, hours=0):
    step = LoadStep(
        concurrency=1,
        requests=9,
        seconds=1,
        tokens_per_second=tokens,
        requests_per_second=1,
        ttft_p50_ms=1,
        ttft_p99_ms=1,
    )
    conditions = Conditions(prompt_tokens=8, output_tokens=8, settings={"dtype": "bfloat16"})
    return Profile(hardware="cpu", steps=(step,), conditions=conditions, measured_at=START + timedelta(hours=hours))


@pytest.fixture
def published(store, make):
    with store.begin() as repository:
        repository.put_model(make.manifest(), expected_version=None)
        for i in (1, 2):
            parts = {part: make.source(f"{part}{i}") for part in ("dense", "sparse")}
            repository.publish("ctr", parts, change_id=f"c{i}")
    return store


def test_a_measurement_is_kept_as_it_is_and_once(published):
    with published.begin() as repository:
        stored = repository.add_profile("ctr", "dense", 1, profile(7.5))
        assert repository.add_profile("ctr", "dense", 1, profile(7.5)) == stored
        other = repository.add_profile("ctr", "dense", 2, profile(7.5))
    assert other.id != stored.id
    with published.read() as repository:
        assert repository.profiles("ctr", "dense", 1) == (stored,)
        assert (stored.snapshot, stored.steps) == (1, profile(7.5).steps)


def test_measurements_are_listed_by_when_they_were_taken_the_newest_first(published):
    with published.begin() as repository:
        for tokens, hours in ((1, 5), (2, 9), (3, 1)):
            repository.add_profile("ctr", "dense", 1, profile(tokens, hours=hours))
        found = [p.steps[0].tokens_per_second for p in repository.profiles("ctr", "dense", 1)]
        assert found == [2, 1, 3]
        assert repository.profiles_of("ctr", 2)["dense", "cpu"].steps[0].tokens_per_second == 2
        assert repository.profiles_of("ctr", None).keys() == {("dense", "cpu")}


def test_a_measurement_of_an_unknown_snapshot_is_refused(published):
    with published.begin() as repository:
        for model, part, number in (("ctr", "dense", 3), ("ctr", "tower", 1), ("nope", "dense", 1)):
            with pytest.raises(NotFound):
                repository.add_profile(model, part, number, profile(1))
        assert repository.profiles_of("ctr", 1) == {}
