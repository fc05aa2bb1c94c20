"""What a process imports is left out of its garbage collections, also of those during the imports."""

import gc
import os
import subprocess
import sys

import pytest

from ipnext.process.garbage_collection import collect_after_imports


@pytest.fixture
def collections():
    """Records of the garbage collections that have started, in order."""
    begun = []

    def note(phase, info):
        if phase == "start":
            begun.append(info)

    gc.callbacks.append(note)
    yield begun
    gc.callbacks.remove(note)


def test_nothing_is_collected_during_imports_and_what_they_made_is_left_out_later(collections):
    before = gc.get_freeze_count()
    with collect_after_imports():
        assert not gc.isenabled()
        made = [[] for _ in range(10_000)]
        frozen = gc.get_freeze_count()
    assert collections == []
    assert frozen == before
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_imports_among_others_leave_the_rest_to_them():
    with collect_after_imports():
        before = gc.get_freeze_count()
        with collect_after_imports():
            made = [[] for _ in range(10_000)]
        assert not gc.isenabled()
        assert gc.get_freeze_count() < before + len(made)
    assert gc.isenabled()


def test_imports_that_fail_leave_collections_on():
    with pytest.raises(ImportError), collect_after_imports():
        raise ImportError
    assert gc.isenabled()


COUNT = """
import gc, importlib, sys
old = []
gc.callbacks.append(lambda phase, told: old.append(told) if phase == "start" and told["generation"] == 2 else None)
importlib.import_module(sys.argv[1])
print(len(old), gc.isenabled())
"""


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("program", ["ipnext.api.__main__", "serving.host.__main__"])
def test_a_program_with_many_imports_makes_no_full_collection_during_them(program):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", COUNT, program], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout.split() == ["0", "True"], ran.stderr
