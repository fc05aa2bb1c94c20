"""The log of an engine.

Begun anew with each start, read by its descriptor, and begun by the keeper for a host that may not.
"""

import os

import pytest

from ipnext.errors import Forbidden, Unavailable
from serving.genai.engine.log import EngineLog, EngineLogs
from serving.snapshots.fetch_starter import FetchingKeeper

NAME = "h.engine-0a1b2c3d.log"


@pytest.fixture
def logs(tmp_path):
    return EngineLogs(tmp_path, "h")


def test_each_start_begins_a_log_and_the_former_one_is_kept(logs, tmp_path):
    log = EngineLog(logs.name("0a1b2c3d4e"), logs.begin)
    for text in (b"first\n", b"second\n"):
        log.begin().write(text)
    assert (tmp_path / NAME).read_bytes() == b"second\n"
    assert (tmp_path / f"{NAME}.1").read_bytes() == b"first\n"
    assert log.last_line == "second"
    log.close()
    assert (log.last_line, log.tail) == ("", "")


def test_what_is_read_are_complaints_and_the_last_lines(logs):
    log = EngineLog(NAME, logs.begin)
    lines = ["ValueError: no such head", *(f"line {number}" for number in range(9)), "\x1b[32mbye\x1b[0m", ""]
    log.begin().write("\n".join(lines).encode())
    assert log.tail == "ValueError: no such head | line 6 | line 7 | line 8 | \x1b[32mbye\x1b[0m"
    assert log.last_line == "bye"
    log.close()


@pytest.mark.parametrize("name", ["other.engine-1.log", "h.engine-/../../agent.log", "h.engine-1.json"])
def test_no_other_file_is_begun(logs, name):
    with pytest.raises(Forbidden, match="is no log of an engine of this host"):
        logs.begin(name)


@pytest.mark.usefixtures("subprocesses")
def test_a_keeper_begins_logs_of_its_hosts_engines_and_no_other_file(logs, tmp_path):
    keeper = FetchingKeeper(lambda: None, logs=logs.begin, at_end=(tmp_path / "ended").touch)
    with keeper.begin_log(NAME) as log:
        os.write(log.fileno(), b"text")
        assert os.pread(log.fileno(), 9, 0) == b"text"
    assert (tmp_path / NAME).read_bytes() == b"text"
    with pytest.raises(Unavailable, match=r"log agent\.log could not be begun: 'agent\.log' is no log of an engine"):
        keeper.begin_log("agent.log")
    keeper.close()
    assert (tmp_path / "ended").exists()
    with pytest.raises(Unavailable, match="the process that begins it has ended"):
        keeper.begin_log(NAME)
