"""Which user hosts have, and what of an agent's directory is opened to it.

Hosts that have one are in test_real_data_plane.py.
"""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipnext.errors import InvalidInput
from ipnext.infra.process import host_user as module
from ipnext.infra.process.host_user import HostUser, find_user, host_user, open_state, refusal
from tests.own_user import needs_root, nobody, open_directory


def test_root_is_no_user_of_their_own() -> None:
    assert find_user("root") is None
    assert find_user("0") is None


def test_a_user_is_named_or_numbered_and_has_its_own_groups_only() -> None:
    assert find_user("54321") == HostUser("54321", 54321, 54321)
    assert 0 not in (nobody().uid, nobody().gid, *nobody().groups)
    assert HostUser("one", 5, 6, (6, 7)).argument == "5:6:6:7"


def test_a_user_that_the_machine_does_not_know_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match="IPNEXT_AGENT_HOST_USER: 'nemo' is no user of this machine; allowed: the name"
    ):
        find_user("nemo")


def test_an_agent_that_is_not_root_keeps_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert host_user("", state=tmp_path) is None
    assert host_user("54321", state=tmp_path) is None
    with pytest.raises(InvalidInput, match="only an agent that runs as root can start hosts as 'nobody'"):
        host_user("nobody", state=tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_root
def test_root_is_kept_if_that_is_said(tmp_path: Path) -> None:
    with capture_logs() as logs:
        assert host_user("root", state=tmp_path) is None
    assert logs[0]["reason"] == "IPNEXT_AGENT_HOST_USER says so"


@pytest.fixture
def place(subprocesses: None) -> Iterator[Path]:
    with open_directory() as path:
        yield path


@needs_root
def test_what_a_user_may_not_reach_is_found_with_the_directory_that_is_closed(place: Path) -> None:
    inner = place / "closed" / "code"
    inner.mkdir(parents=True)
    (place / "secret").touch(mode=0o600)
    assert refusal(nobody(), reads=[inner], enters=[place]) is None
    (place / "closed").chmod(0o700)
    told = "it may not enter or read {}"
    assert refusal(nobody(), reads=[place, inner]) == told.format(place / "closed")
    assert refusal(nobody(), reads=[], enters=[inner.parent]) == told.format(place / "closed")
    assert refusal(nobody(), reads=[place / "secret"]) == told.format(place / "secret")
    (place / "link").symlink_to(inner)
    assert refusal(nobody(), reads=[place / "link"]) == told.format(place / "link")


@needs_root
def test_code_behind_a_link_is_refused_by_the_directory_that_is_closed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, python = place / "closed", place / "closed" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    closed.chmod(0o700)
    (place / "python").symlink_to(python)
    state = place / "state"
    state.mkdir()
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    with capture_logs() as logs:
        assert host_user("", state=state) is None
    assert logs[0]["reason"].endswith(f": it may not enter or read {closed}")


@needs_root
def test_hosts_keep_root_if_another_user_could_not_read_their_code_and_the_log_says_which(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "code"
    closed.mkdir(mode=0o700)
    state = place / "state"
    state.mkdir(mode=0o700)
    monkeypatch.setattr(module, "_code", lambda: [closed / "python"])
    with capture_logs() as logs:
        assert host_user("", state=state) is None
    assert logs[0]["event"] == "hosts and engines run as root"
    assert f"may not enter or read {closed}" in logs[0]["reason"]
    assert "IPNEXT_AGENT_HOST_USER" in logs[0]["mend"]
    with pytest.raises(InvalidInput, match=f"hosts can't run as 'nobody': it may not enter or read {closed}"):
        host_user("nobody", state=state)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


@needs_root
def test_the_cache_is_opened_to_the_users_group_and_nothing_else_is(place: Path) -> None:
    state = place / "state"
    (state / "cache" / "abc").mkdir(parents=True)
    for path in (state, state / "cache"):
        path.chmod(0o700)
    (state / "cache" / "abc" / "weights").touch(mode=0o600)
    (state / "wanted.json").touch(mode=0o600)
    open_state(state, 54321)
    modes = {str(path.relative_to(place)): stat.S_IMODE(path.stat().st_mode) for path in place.rglob("*")}
    assert modes == {
        "state": 0o710,
        "state/cache": 0o2750,
        "state/cache/abc": 0o2750,
        "state/cache/abc/weights": 0o640,
        "state/wanted.json": 0o600,
    }
    assert (state / "cache" / "abc" / "weights").stat().st_gid == 54321
