"""The watched directory: what moves, links, faults of the place, and what may be read."""

import os
import shutil

import pytest

from ipnext.errors import InvalidInput, NotFound, PathNotAllowed, Unavailable
from ipnext.model.manifest.sources import DirectoryStream
from ipnext.model.registry.sources import Reach
from ipnext.sources import directory
from ipnext.sources.access import ReadAccess
from ipnext.sources.directory import DirectoryKind
from ipnext.sources.port import StreamRequest
from tests.ipnext.conftest import write_snapshot
from tests.ipnext.sources.conftest import WatchedDirectory

pytestmark = pytest.mark.trust


@pytest.fixture
def place(tmp_path) -> WatchedDirectory:
    return WatchedDirectory(tmp_path)


def test_an_old_snapshot_that_is_moved_in_later_is_listed_after_those_before_it(place, tmp_path):
    write_snapshot(tmp_path / "old", b"old")
    place.put("new", b"new")
    first = place.source.list_since("")
    (tmp_path / "old").rename(place.incoming / "old")
    assert [found.place for found in place.source.list_since(first.cursor).versions] == ["new", "old"]


def test_a_snapshot_that_goes_away_changes_the_cursor_and_brings_nothing(place):
    place.put("a", b"1")
    place.put("b", b"2")
    first = place.source.list_since("")
    shutil.rmtree(place.incoming / "a")
    assert [found.key for found in place.source.list_since(first.cursor).versions] == [first.versions[1].key]


def test_files_and_links_to_nowhere_are_left(place):
    (place.incoming / "file").write_text("x")
    (place.incoming / "nowhere").symlink_to(place.incoming / "missing")
    (place.incoming / "round").symlink_to(place.incoming / "round")
    assert place.source.list_since("").versions == ()


def test_a_link_that_leads_out_of_the_roots_is_no_way_to_read(place, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    write_snapshot(outside / "secret", b"secret")
    (place.incoming / "link").symlink_to(outside / "secret")
    (found,) = place.source.list_since("").versions
    assert found.key == "link@PathNotAllowed"
    with pytest.raises(PathNotAllowed):
        place.source.open(found)


def test_an_unreadable_manifest_is_another_version_once_it_can_be_read(place, monkeypatch):
    place.put("a", b"1")
    opened = directory.DirectorySource.open

    def fail(self, path):
        raise Unavailable("no")

    monkeypatch.setattr(directory.DirectorySource, "open", fail)
    (before,) = place.source.list_since("").versions
    monkeypatch.setattr(directory.DirectorySource, "open", opened)
    os.utime(place.incoming / "a" / "snapshot.json")  # as `chmod` changes the times of the file
    (after,) = place.source.list_since("").versions
    assert before.key == "a@Unavailable"
    assert after.key != before.key


def test_a_directory_that_is_gone_says_so(place):
    place.incoming.rmdir()
    with pytest.raises(NotFound, match="is not there"):
        place.source.list_since("")


def test_too_many_entries_are_refused_with_the_number(place, monkeypatch):
    monkeypatch.setattr(directory, "MOST_ENTRIES", 2)
    for name in "abc":
        place.put(name, name.encode())
    with pytest.raises(Unavailable, match="more than 2 entries"):
        place.source.list_since("")


def test_only_roots_may_be_watched_but_by_administrators_who_may_read_any(tmp_path):
    stream, kind = DirectoryStream(path=str(tmp_path)), DirectoryKind()
    with pytest.raises(PathNotAllowed, match="outside the directories that may be read"):
        kind.check(stream, ReadAccess(roots=(tmp_path / "other",)))
    kind.check(stream, ReadAccess(roots=(tmp_path,)))
    kind.check(stream, ReadAccess(reach=Reach.ANY))


def test_a_root_that_is_not_allowed_any_more_is_not_listed(tmp_path):
    place = WatchedDirectory(tmp_path)
    place.put("a", b"1")
    (source,) = DirectoryKind().connect([StreamRequest(DirectoryStream(path=str(place.incoming)), ReadAccess())])
    with pytest.raises(PathNotAllowed):
        source.list_since("")


def test_a_missing_directory_is_refused_when_the_manifest_is_applied(tmp_path):
    with pytest.raises(InvalidInput, match=r"directory\.path: .* is not a directory"):
        DirectoryKind().check(DirectoryStream(path=str(tmp_path / "none")), ReadAccess(roots=(tmp_path,)))
