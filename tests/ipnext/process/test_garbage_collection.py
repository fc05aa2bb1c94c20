"""What a process imports is left out of its garbage collections, also of those during the imports."""

import gc

import pytest

from ipnext.process.garbage_collection import collect_after_imports


def test_nothing_is_collected_during_imports_and_what_they_made_is_left_out_later(monkeypatch):
    monkeypatch.setattr(gc, "collect", int)  # of all that other tests have made, in seconds
    before = gc.get_freeze_count()
    with collect_after_imports():
        assert not gc.isenabled()
        made = [[] for _ in range(10)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_imports_that_fail_leave_collections_on():
    with pytest.raises(ImportError), collect_after_imports():
        raise ImportError
    assert gc.isenabled()
