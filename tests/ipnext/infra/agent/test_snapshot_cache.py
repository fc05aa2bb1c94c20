"""Fetched snapshots stay while they are wanted, and a while longer."""

import pytest

from ipnext.infra.agent.snapshot_cache import SnapshotCache, remove


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(tmp_path, clock):
    for digest in ("a", "b"):
        (tmp_path / digest).mkdir()
        (tmp_path / digest / "weights").write_text("w")
    return SnapshotCache(tmp_path, keep_seconds=10, clock=clock)


def present(tmp_path):
    return {path.name for path in tmp_path.iterdir()}


def test_an_unwanted_snapshot_goes_after_the_time_to_keep_it(cache, clock, tmp_path):
    assert cache.sweep({"a"}) == ()
    clock.now = 9
    assert cache.sweep({"a"}) == ()
    clock.now = 10
    remove(cache.sweep({"a"}))
    assert present(tmp_path) == {"a"}


def test_one_that_is_wanted_again_in_between_stays(cache, clock, tmp_path):
    cache.sweep({"a"})
    clock.now = 9
    cache.sweep({"a", "b"})
    clock.now = 18
    assert cache.sweep({"a"}) == ()
    assert present(tmp_path) == {"a", "b"}


def test_scraps_are_found(cache, tmp_path):
    (tmp_path / ".c.half").mkdir()
    remove(cache.scraps())
    assert present(tmp_path) == {"a", "b"}


def test_a_cache_that_is_not_there_yet_is_empty(tmp_path):
    cache = SnapshotCache(tmp_path / "later", keep_seconds=0)
    assert (cache.scraps(), cache.sweep(())) == ((), ())
