"""Which files of a region's logs are told, and how much of them."""

import os

import pytest

from ipnext.infra.host import logs
from ipnext.infra.host.logs import read_logs
from ipnext.model.deployment.logs import LogQuery
from tests.waiting import until

RUNS = "chat.llm.cpu.0"


@pytest.fixture
def directory(tmp_path):
    texts = {
        f"{RUNS}.log": "host of 0\n",
        f"{RUNS}.engine-1a2b3c4d.log": "one\ntwo\nthree\n",
        f"{RUNS}.engine-1a2b3c4d.log.1": "died\n",
        "chat.llm.cpu.1.log": "host of 1\n",
        "chat.other.cpu.0.log": "other\n",
        "chatter.llm.cpu.0.log": "of another model\n",
        "router.log": "router\n",
    }
    for age, (name, text) in enumerate(texts.items()):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    return tmp_path


def read(directory, **query):
    return read_logs(directory, LogQuery(model="chat", **query), region="eu", running={RUNS})


def names(found):
    return [log.name for log in found]


def test_a_models_logs_are_told_with_what_their_names_say_the_newest_last(directory):
    found = read(directory, part="llm")
    assert names(found) == [
        "chat.llm.cpu.1.log",
        f"{RUNS}.engine-1a2b3c4d.log.1",
        f"{RUNS}.engine-1a2b3c4d.log",
        f"{RUNS}.log",
    ]
    assert [(log.replica, log.engine, log.former, log.ended) for log in found] == [
        ("chat.llm.cpu.1", None, False, True),
        (RUNS, "1a2b3c4d", True, False),
        (RUNS, "1a2b3c4d", False, False),
        (RUNS, None, False, False),
    ]
    assert "chat.other.cpu.0.log" in names(read(directory))
    assert len(read(directory)) == 5


def test_a_part_and_a_replica_narrow_it(directory):
    assert names(read(directory, replica=1)) == ["chat.llm.cpu.1.log"]
    assert names(read(directory, part="other")) == ["chat.other.cpu.0.log"]
    assert names(read(directory, part="other", replica=1)) == []


@pytest.mark.parametrize(("tail", "text"), [(0, ""), (2, "two\nthree\n"), (9, "one\ntwo\nthree\n")])
def test_the_last_lines_are_told(directory, tail, text):
    log = read(directory, part="llm", tail=tail)[2]
    assert (log.text, log.end) == (text, 14)


def test_what_was_written_since_is_told_of_what_is_named_and_of_what_runs(directory):
    known = {f"{RUNS}.log": 10, "chat.llm.cpu.1.log": 5}
    with (directory / f"{RUNS}.log").open("a") as file:
        file.write("more")
    found = {log.name: log.text for log in read(directory, after=known)}
    assert found == {
        f"{RUNS}.log": "more",
        "chat.llm.cpu.1.log": "of 1\n",
        f"{RUNS}.engine-1a2b3c4d.log": "one\ntwo\nthree\n",
    }


def test_a_file_that_began_anew_is_told_from_its_beginning(directory):
    (directory / f"{RUNS}.log").write_text("new\n")
    log = read(directory, after={f"{RUNS}.log": 10})[-1]
    assert (log.text, log.end) == ("new\n", 4)


def test_an_answer_has_a_bound_and_the_next_goes_on_behind_it(directory, monkeypatch):
    monkeypatch.setattr(logs, "MOST_BYTES", 4)
    (first,) = [log for log in read(directory) if log.name == f"{RUNS}.log"]
    assert (first.text, first.end) == ("f 0\n", 10)
    log = read(directory, after={f"{RUNS}.log": 0})[-1]
    assert (log.text, log.end) == ("host", 4)


def test_a_real_agent_tells_the_logs_of_a_replica_that_runs_and_of_one_that_ended(shared_agent, builder):
    model = builder("logged")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    query = LogQuery(model="logged")
    assert [(log.region, log.ended) for log in shared_agent.infra.logs("eu", query)] == [("eu", False)] * 2
    shared_agent.infra.apply(model.deployment({1: (1,)}, replicas=1))
    until(lambda: len(shared_agent.replicas(model.key())) == 1, why=lambda: "one replica is left")
    assert sorted(log.ended for log in shared_agent.infra.logs("eu", query)) == [False, True]
    (log,) = shared_agent.infra.logs("eu", LogQuery(model="logged", replica=1))
    assert log.file == str(shared_agent.state / "logs" / "logged.dense.cpu.1.log")
