"""The folder of compiled kernels, and what happens to kernels whose entries are spoilt or can't be kept."""

import os
import tempfile
import threading

import pytest

from planner import kernel_cache
from planner.jit import entry_kernel, kernel

SPOILT = {"empty": b"", "cut": b"\x80\x05\x95", "zeros": bytes(200), "text": b"no pickle at all"}


def twice(x):
    return 2 * x


@pytest.fixture
def user_cache(tmp_path, monkeypatch):
    """The user's cache, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernel_cache.folder.cache_clear()
    yield tmp_path / "cache"
    kernel_cache.folder.cache_clear()


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The directory of temporary files."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@kernel
def triple(x):
    return 3 * x


def triple_of_two(x, y):
    return triple(x) + triple(y)


def entries(directory):
    return sorted(path for path in directory.rglob("*.nb?"))


def sees_hit(found):
    return sum(found.stats.cache_hits.values())


def test_a_kernel_is_kept_in_the_users_cache_and_loaded_from_it(user_cache):
    assert entry_kernel(twice)(3) == 6
    assert {path.suffix for path in entries(user_cache)} == {".nbi", ".nbc"}
    again = entry_kernel(twice)
    assert again(3) == 6
    assert sees_hit(again) == 1


def test_a_kernel_that_kernels_alone_call_has_no_code_and_no_entry_of_its_own(user_cache):
    outer = entry_kernel(triple_of_two)
    assert outer(3, 4) == 21
    assert {path.name.partition("-")[0] for path in entries(user_cache)} == {"test_kernel_cache.triple_of_two"}
    compiled = [getattr(one.library, "_compiled", False) for each in (triple, outer) for one in each.overloads.values()]
    assert compiled == [False, True]


def test_a_kernel_that_is_not_called_creates_no_folder(user_cache):
    entry_kernel(twice)
    assert not user_cache.exists()


@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_entry_is_compiled_and_written_anew(user_cache, kind, content):
    entry_kernel(twice)(3)
    (spoilt,) = user_cache.rglob(kind)
    spoilt.write_bytes(content)

    assert entry_kernel(twice)(3) == 6

    again = entry_kernel(twice)
    assert again(3) == 6
    assert sees_hit(again) == 1, "it was mended"


def test_without_a_writable_cache_of_the_user_a_private_folder_of_temporary_files_serves(user_cache, temporary):
    user_cache.write_text("a file in the place of a directory")

    assert entry_kernel(twice)(3) == 6

    own = temporary / f"ipnext-{os.getuid()}"
    assert entries(own)
    assert own.stat().st_mode & 0o077 == 0


def test_a_temporary_folder_that_others_can_write_is_not_used(user_cache, temporary):
    user_cache.write_text("")
    own = temporary / f"ipnext-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)

    assert entry_kernel(twice)(3) == 6

    assert kernel_cache.folder() is None
    assert list(own.iterdir()) == []
    assert not kernel_cache.is_complete()
    assert not kernel_cache.is_compiling()
    kernel_cache.mark_complete()
    kernel_cache.empty()
    with kernel_cache.compiling_alone():
        pass


def test_each_installation_and_each_source_has_a_folder_of_its_own(user_cache, tmp_path, monkeypatch):
    found = set()
    for name, text in (("one", "a"), ("two", "a"), ("two", "b")):
        installation = tmp_path / name
        installation.mkdir(exist_ok=True)
        (installation / "jit.py").write_text(text)
        monkeypatch.setattr(kernel_cache, "__file__", str(installation / "kernel_cache.py"))
        kernel_cache.folder.cache_clear()
        found.add(kernel_cache.folder())
    assert len(found) == 3


def test_a_full_disk_leaves_a_kernel_to_its_process(user_cache, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert entry_kernel(twice)(3) == 6
    assert entries(user_cache) == []


def test_one_compiles_at_a_time_and_others_see_it(user_cache):
    turns = []

    def compile_too():
        with kernel_cache.compiling_alone():
            turns.append("other")

    other = threading.Thread(target=compile_too)
    with kernel_cache.compiling_alone():
        assert kernel_cache.is_compiling()
        other.start()
        turns.append("first")
    other.join()
    assert turns == ["first", "other"]
    assert not kernel_cache.is_compiling()


def test_what_is_complete_is_so_until_it_is_emptied(user_cache):
    entry_kernel(twice)(3)
    assert not kernel_cache.is_complete()
    kernel_cache.mark_complete()
    assert kernel_cache.is_complete()
    kernel_cache.empty()
    assert (kernel_cache.is_complete(), entries(user_cache)) == (False, [])
