"""Large documents are parsed one at a time, and a validation that is to end waits for none of them."""

import io
import json
import signal
from threading import Event, Thread

import pytest
from temporalio.exceptions import CancelledError

from activities.validation.documents import json_process
from activities.validation.documents.json_process import WORKER_BYTES, WORKER_SEPARATORS
from activities.validation.documents.parsing import SMALL_BYTES, ParsingThread
from activities.validation.files import check_formats
from activities.validation.programs import check_programs
from ipnext.artifacts.bounded_json import TooManyValues, load_bounded
from ipnext.artifacts.programs.reader import LARGEST_PROGRAM_BYTES
from ipnext.errors import Unavailable
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.trust

LARGE = SMALL_BYTES + 1


def ended(_):
    raise CancelledError


def ignored(_):
    pass


class Gate:
    """A document whose parsing lasts until it is let go."""

    def __init__(self):
        self.begun, self.let_go = Event(), Event()

    def read(self):
        self.begun.set()
        assert self.let_go.wait(PATIENCE_SECONDS)
        return "parsed"


def test_a_validation_that_was_told_to_end_waits_for_no_document():
    gate, threads = Gate(), ParsingThread()
    with pytest.raises(CancelledError):
        threads.of(ended)(LARGE, gate.read)
    assert not gate.let_go.is_set()
    gate.let_go.set()


def test_no_two_large_documents_are_parsed_at_the_same_time():
    first, second, threads, found = Gate(), Gate(), ParsingThread(), []
    parse = threads.of(ignored)
    asking = [Thread(target=lambda g=gate: found.append(parse(LARGE, g.read)), daemon=True) for gate in (first, second)]
    asking[0].start()
    until(first.begun.is_set)
    asking[1].start()
    with pytest.raises(CancelledError):  # it gets in line behind the second, and gives up
        threads.of(ended)(LARGE, second.read)
    assert not second.begun.is_set(), "the first is still being parsed"
    first.let_go.set()
    until(second.begun.is_set)
    second.let_go.set()
    until(lambda: found == ["parsed", "parsed"])


def test_a_document_that_a_validation_gave_up_before_its_turn_is_never_parsed():
    gate, threads, late = Gate(), ParsingThread(), Event()
    Thread(target=lambda: threads.of(ignored)(LARGE, gate.read), daemon=True).start()
    until(gate.begun.is_set)
    with pytest.raises(CancelledError):
        threads.of(ended)(LARGE, late.set)
    gate.let_go.set()
    assert threads.of(ignored)(LARGE, lambda: "the next one") == "the next one"
    assert not late.is_set()


def test_owners_take_turns():
    first, threads, order = Gate(), ParsingThread(), []
    asked = [
        ("many", first.read),
        *(("many", lambda n=n: order.append(n)) for n in range(3)),
        ("few", lambda: order.append("few")),
    ]
    asking = []
    for owner, read in asked:
        asking.append(Thread(target=threads.of(ignored, owner=owner), args=(LARGE, read), daemon=True))
        asking[-1].start()
        until(lambda: first.begun.is_set() and sum(map(len, threads._waiting.values())) == len(asking) - 1)
    first.let_go.set()
    for thread in asking:
        thread.join(PATIENCE_SECONDS)
    assert order == [0, "few", 1, 2]


def test_small_documents_wait_for_nothing():
    gate, threads = Gate(), ParsingThread()
    Thread(target=lambda: threads.of(ignored)(LARGE, gate.read), daemon=True).start()
    until(gate.begun.is_set)
    assert threads.of(ended)(SMALL_BYTES, lambda: "parsed") == "parsed"
    gate.let_go.set()


@pytest.mark.parametrize("error", [ValueError("no JSON"), TimeoutError("of its own")])
def test_what_parsing_raises_is_raised(error):
    def fail():
        raise error

    with pytest.raises(type(error), match=str(error)):
        ParsingThread().of(ignored)(LARGE, fail)


def test_a_document_of_too_many_objects_is_refused_before_any_is_made():
    with pytest.raises(TooManyValues, match=r"6 commas and brackets; allowed: 5"):
        load_bounded(b"[[],[],[]]", most_separators=5)
    assert load_bounded(b"[[],[],[]]", most_separators=6) == [[], [], []]


def arrays(count):
    return b"[" + b"[]," * (count - 1) + b"[]]"


def judge_files(candidate, house, kit, **files):
    found = candidate(dense=house.source(kit.DENSE, kit.weights(2), more={f"{n}.json": c for n, c in files.items()}))
    subjects = {f"dense/{name}.json" for name in files}
    return {one.subject: one.message for one in check_formats(found) if not one.passed and one.subject in subjects}


@pytest.mark.parametrize("filling", [b"", b" " * WORKER_BYTES], ids=["many values", "many bytes"])
def test_a_json_file_of_too_many_objects_is_refused_before_any_is_made(candidate, house, kit, monkeypatch, filling):
    monkeypatch.setattr(json_process, "MOST_SEPARATORS", 100)
    monkeypatch.setattr(json_process, "run_child", None)
    parsed = []
    monkeypatch.setattr(json_process, "json_fault", lambda content: parsed.append(content) or "")
    found = judge_files(candidate, house, kit, vocabulary=filling + arrays(200))
    assert found.keys() == {"dense/vocabulary.json"}
    assert found["dense/vocabulary.json"] == "is JSON with 400 commas and brackets; allowed: 100"
    assert not any(arrays(200) in content for content in parsed)


def test_json_files_of_a_snapshot_are_bounded_together(candidate, house, kit, monkeypatch):
    monkeypatch.setattr(json_process, "MOST_SEPARATORS_TOGETHER", 100_000)
    found = judge_files(candidate, house, kit, a=arrays(20_000), b=arrays(20_000) + b" ", c=arrays(20_000) + b"  ")
    assert found.keys() == {"dense/c.json"}
    assert "commas and brackets in such files; allowed: 100000" in found["dense/c.json"]
    monkeypatch.setattr(json_process, "MOST_JSON_BYTES", 1_000_000)
    found = judge_files(candidate, house, kit, a=b" " * 900_000 + b"1", b=b" " * 200_000 + b"1")
    assert found.keys() == {"dense/b.json"}
    assert "bytes of it; allowed: 1000000" in found["dense/b.json"]


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("large", [arrays(WORKER_SEPARATORS), arrays(2) + b" " * WORKER_BYTES])
def test_large_json_files_are_parsed_in_a_process_of_their_own(candidate, house, kit, monkeypatch, large):
    monkeypatch.setattr(json_process, "load_bounded", lambda content, **_: json.loads(content[:1000]))
    assert judge_files(candidate, house, kit, good=large) == {}
    (fault,) = judge_files(candidate, house, kit, bad=large + b"]").values()
    assert fault.startswith("is not JSON: Extra data")


def test_a_process_that_ends_without_an_answer_refuses_no_file():
    with pytest.raises(Unavailable, match="ended by SIGKILL: it said nothing"):
        json_process.judge_end(-signal.SIGKILL, "", "")


def test_no_more_of_a_file_is_read_than_its_manifest_says():
    stream = io.BytesIO(b"2]" + b" " * 100)
    assert json_process.JsonFiles().find_fault(b"[1,", stream, 5) == ""
    assert stream.tell() == 2


def test_a_program_that_is_too_large_is_refused_unread(candidate, house, kit):
    content = b'{"format": "' + b"x" * LARGEST_PROGRAM_BYTES + b'"}'
    found = candidate(dense=house.source(kit.DENSE, kit.weights(2), more={"program.json": content}))
    (refused,) = [result for result in check_programs(found) if not result.passed]
    assert f"bytes; allowed: {LARGEST_PROGRAM_BYTES}" in refused.message


def test_one_blob_under_many_names_is_parsed_once(candidate, house, kit):
    content = b"[" + b" " * SMALL_BYTES + b"]"
    more = {f"copy-{number}.json": content for number in range(5)}
    found = candidate(dense=house.source(kit.DENSE, kit.weights(2), more=more))
    parsed = []

    def counted(size_bytes, read):
        parsed.append(size_bytes)
        return read()

    object.__setattr__(found, "parse", counted)
    assert all(result.passed for result in check_formats(found))
    assert parsed.count(len(content)) == 1
