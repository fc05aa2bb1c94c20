"""The directory where prefill and decode meet is there while any engine uses it.

It is empty before the first and after the last.
"""

import subprocess
import sys

import pytest

from serving.genai.engine.shared_storage import SharedStorage
from tests.waiting import PATIENCE_SECONDS

KILLED = """
import os, pathlib, signal, sys
from serving.genai.engine.shared_storage import SharedStorage
storage = SharedStorage(pathlib.Path(sys.argv[1]))
storage.take()
(storage.directory / "left").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "transfer" / "digest"


def test_what_is_there_stays_until_the_last_has_left(directory):
    one, other = SharedStorage(directory), SharedStorage(directory)
    one.take()
    (directory / "file").write_text("x")
    other.take()
    one.release()
    assert (directory / "file").exists()
    other.release()
    assert not directory.exists()


def test_one_that_takes_it_twice_is_one_user(directory):
    one = SharedStorage(directory)
    one.take()
    (directory / "file").write_text("x")
    one.take()
    assert (directory / "file").exists()
    one.release()
    one.release()
    assert not directory.exists()


@pytest.mark.usefixtures("subprocesses")
def test_what_a_killed_process_left_is_gone_for_the_next(directory):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(directory)], check=False, timeout=PATIENCE_SECONDS)
    assert killed.returncode < 0
    assert (directory / "left").exists()
    storage = SharedStorage(directory)
    storage.take()
    assert list(directory.iterdir()) == []
    storage.release()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "transfer").write_text("a file")
    storage = SharedStorage(tmp_path / "transfer" / "digest")
    with pytest.raises(OSError, match="transfer"):
        storage.take()
    storage.release()
