"""Scratch directories: removed with their use, and if their worker was killed, before the next one."""

import os
import tempfile

import pytest

from activities.runtime.scratch import LEFT_SECONDS, PREFIX, scratch_directory


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(directory):
    os.utime(directory, (0, directory.stat().st_mtime - LEFT_SECONDS))


def test_a_directory_ends_with_its_use(place):
    with scratch_directory("cut") as scratch:
        (scratch / "whole").mkdir()
        assert list(place.iterdir()) == [scratch]
    assert list(place.iterdir()) == []


def test_one_that_nothing_holds_is_removed_before_the_next_one(place):
    left, fresh, other = (place / name for name in (f"{PREFIX}cut-1", f"{PREFIX}cut-2", "another-1"))
    for directory in (left, fresh, other):
        (directory / "whole").mkdir(parents=True)
    for directory in (left, other):
        age(directory)
    with scratch_directory("step"):
        assert (left.exists(), fresh.exists(), other.exists()) == (False, True, True)


def test_one_in_use_stays_however_old_it_is(place):
    with scratch_directory("cut") as used:
        age(used)
        with scratch_directory("step"):
            assert used.exists()


def test_a_link_with_the_name_of_one_is_not_followed(place):
    target = place / "target"
    (target / "file").mkdir(parents=True)
    age(target)
    (place / f"{PREFIX}link").symlink_to(target)
    with scratch_directory("cut"):
        assert (target / "file").exists()
