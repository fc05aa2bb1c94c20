"""Whatever a file holds: a value, or one line that names the field, what was given and what is allowed.

Never a traceback.
"""

import contextlib
import copy
import gc
import json
import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import Plan, Problem
from planner.cli.app import app
from planner.io import json_reader as wire
from planner.io.json_reader import read_value
from planner.io.problem import read_plan, read_problem, read_state, read_transition, validate
from tests.planner.strategies import plans, problems, settled

LONGEST_LINE = 1_200
"""Characters of a message at most, the file's path aside."""


def examples(most):
    """Settings: one folder and one small document serve all examples."""
    return settings(max_examples=most, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


READERS = [read_problem, read_plan, read_state, read_transition]


@pytest.fixture
def document(problem, model):
    stated = problem(
        model("m", {"a": 100.0}),
        supply={"a/h": 4.0, "b/h": 4.0},
        owners=[{"owner": "o", "budget_per_hour": 10.0}],
        replicas=[{"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 1}],
        traffic=[{"model": "m", "from": "a", "to": "a", "fraction": 1.0}],
    )
    return stated.model_dump(mode="json", by_alias=True)


def written(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(read, path):
    """The error, which is one line of bounded length that begins with its field."""
    with pytest.raises(InvalidInput) as refused:
        read(path)
    error = refused.value
    assert error.message.isprintable()
    assert len(error.message) <= LONGEST_LINE + len(str(path))
    assert error.field
    assert error.message.startswith(error.field) or error.message.startswith("file: ")
    return error


NO_JSON = {
    "empty": b"",
    "blank": b" \n",
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": '{"regions":[]}'.encode("utf-16"),
    "latin-1": '{"é":1}'.encode("latin-1"),
    "binary": bytes(range(256)) * 50,
    "zip": b"PK\x03\x04" + bytes(1000),
    "cut": b'{"regions": ["a"',
    "two": b"{} {}",
    "comma": b'{"a": 1,}',
    "quote": b"{'a': 1}",
    "nan": b'{"regions": NaN}',
    "infinity": b'{"a": -Infinity}',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits": b'{"a": ' + b"1" * 5000 + b"}",
    "surrogate": b'{"a": "\\ud800"}',
    "control": b'{"a": "\x01"}',
    "nul": b"\x00" * 100,
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON.keys())
def test_what_is_no_json_is_refused_by_the_file(tmp_path, read, content):
    assert refusal(read, written(tmp_path, content)).field == "file"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"text"', b"true", b"[" + b"[]," * 99 + b"[]]", b"1e400"])
def test_json_that_is_no_object_is_refused(tmp_path, read, content):
    assert refusal(read, written(tmp_path, content)).field == "file"


def test_a_file_that_cannot_be_read_is_refused_by_the_file(tmp_path):
    closed = written(tmp_path, "{}")
    closed.chmod(0)
    paths = [tmp_path, tmp_path / "none.json", "", "\x00", "a\nb", "x" * 5000, closed / "file"]
    if os.geteuid():
        paths.append(closed)
    for path in paths:
        error = refusal(read_problem, path)
        assert error.field == "file"
        assert "cannot read" in error.message


@pytest.mark.parametrize("read", READERS)
def test_a_file_of_200_mb_is_refused_by_its_size_before_it_is_read(tmp_path, read):
    path = tmp_path / "file.json"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    error = refusal(read, path)
    assert error.field == "file"
    assert "200,000,000 bytes" in error.message
    assert error.allowed == ("at most 190 MB (190,000,000 bytes)",)


def test_a_pipe_is_refused_once_it_gives_too_much(tmp_path, monkeypatch, document):
    monkeypatch.setattr(wire, "LARGEST_FILE_BYTES", 5_000)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for content, enough in ((json.dumps(document), True), (json.dumps(document) + " " * 9_000, False)):
        writer = threading.Thread(target=lambda text=content: _pour(path, text))
        writer.start()
        if enough:
            assert read_problem(path).regions == ("a", "b")
        else:
            assert "allowed: at most" in refusal(read_problem, path).message
        writer.join()


def _pour(path, text):
    with contextlib.suppress(BrokenPipeError):
        path.write_text(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"regions": ["a"], "regions": ["a"]}', "regions"),
        ('{"regions"  : ["a"], "regions"\t:["a"]}', "regions"),
        ('{"regions" : ["a"], "regions": ["a"]}', "regions"),
        ('{"reg\\u0069ons": ["a"], "regions": ["a"]}', "regions"),
    ],
)
def test_a_name_that_stands_twice_in_an_object_is_refused(tmp_path, document, text, name):
    rest = json.dumps({key: value for key, value in document.items() if key != name})
    error = refusal(read_problem, written(tmp_path, text[:-1] + ", " + rest[1:]))
    assert error.field == name
    assert "twice" in error.message


def test_a_name_that_stands_twice_in_a_row_is_refused(tmp_path, document):
    text = json.dumps(document).replace('"count": 1', '"count": 1, "count": 2')
    assert refusal(read_problem, written(tmp_path, text)).field == "count"


def test_names_with_quotes_and_colons_are_no_names_of_fields(tmp_path, document):
    for name in ('": "', ':"', '"', "a:b", '":', "é", "\\", '\\":'):
        text = json.dumps(document).replace('"m"', json.dumps(name))
        assert read_problem(written(tmp_path, text)).models[0].model == name


@pytest.mark.parametrize("name", ["m" * 100_000, "a\nb", "a\x1b[31m", "\x00", "a\u2028b", "", "\u200b"])
@pytest.mark.parametrize("at", ["m", "o", "a", "h", "p"])
def test_names_that_no_line_can_show_are_refused(tmp_path, document, name, at):
    text = json.dumps(document).replace(json.dumps(at), json.dumps(name))
    error = refusal(read_problem, written(tmp_path, text))
    assert "printable characters" in error.message


@pytest.mark.parametrize("name", ["x" * 100_000, "a\nb", "\x07", "", "ü"])
def test_unknown_fields_are_shown_in_one_line(tmp_path, document, name):
    document["models"][0][name] = 1
    error = refusal(read_problem, written(tmp_path, json.dumps(document)))
    assert error.field.startswith("models[0].")
    assert len(error.field) < 120
    assert "unknown field" in error.message


@pytest.mark.parametrize(
    "value", ["x" * 100_000, "a\nb", 10**4000, -(10**4000), 1e12 * 1.01, True, "1", None, -1, -0.0]
)
def test_figures_that_are_none_are_shown_in_one_line(tmp_path, document, value):
    for field, put in {
        "models[0].demand[0].qps": lambda d: d["models"][0]["demand"][0].__setitem__("qps", value),
        "supply[1].units": lambda d: d["supply"][1].__setitem__("units", value),
        "current.replicas[0].count": lambda d: d["current"]["replicas"][0].__setitem__("count", value),
        "models[0].parts[0].min_replicas": lambda d: d["models"][0]["parts"][0].__setitem__("min_replicas", value),
        "rtt_ms[1][0]": lambda d: d["rtt_ms"][1].__setitem__(0, value),
    }.items():
        changed = copy.deepcopy(document)
        put(changed)
        assert refusal(read_problem, written(tmp_path, json.dumps(changed))).field == field


def test_figures_beyond_a_double_are_refused(tmp_path, document):
    for figure in ("1e400", "-1e400", "123456789e999999"):
        text = json.dumps(document).replace('"qps": 100.0', f'"qps": {figure}', 1)
        assert refusal(read_problem, written(tmp_path, text)).field == "models[0].demand[0].qps"


@pytest.mark.parametrize(
    ("read", "text", "field"),
    [
        (read_plan, '{"replicas": 1}', "status"),
        (read_plan, '{"traffic": [{"model": "m"}]}', "traffic[0].from"),
        (read_state, '{"replicas": [], "traffic": [7]}', "traffic[0]"),
        (read_state, '{"replica": []}', "replica"),
        (read_transition, '{"from": {}, "to": {"replicas": {}}}', "to.replicas"),
        (read_transition, '{"from": {}, "to": {}, "waves": [{"gate": "door"}]}', "waves[0].gate"),
        (read_transition, '{"from": {}}', "to"),
    ],
)
def test_plans_states_and_transitions_name_the_field_too(tmp_path, read, text, field):
    assert refusal(read, written(tmp_path, text)).field == field


def test_figures_and_names_of_plans_and_states_are_looked_at(tmp_path):
    row = {"model": "m", "part": "p", "generation": 1, "region": "a", "hardware": "h", "count": 1}
    for name, value in (("count", 10**13), ("generation", -(10**13)), ("region", "a\nb"), ("model", "m" * 300)):
        text = json.dumps({"replicas": [row, {**row, name: value}]})
        assert refusal(read_state, written(tmp_path, text)).field == f"replicas[1].{name}"


def test_rows_beyond_one_slice_are_counted_from_the_first(tmp_path, monkeypatch, document):
    monkeypatch.setattr(wire, "SLICE", 3)
    row = document["current"]["traffic"][0]
    rows = [{**row, "fraction": 0.1, "to": to} for to in "ab" for _ in range(4)]
    document["current"]["traffic"] = [*rows, {**row, "fraction": -1}]
    assert refusal(read_problem, written(tmp_path, json.dumps(document))).field == "current.traffic[8].fraction"
    document["current"]["traffic"] = rows
    assert len(read_value(written(tmp_path, json.dumps(document)), Problem).current.traffic) == 8


def test_reading_leaves_the_collector_as_it_was(tmp_path, document):
    good, bad = json.dumps(document), "{"
    for running in (True, False):
        (gc.enable if running else gc.disable)()
        try:
            read_problem(written(tmp_path, good))
            refusal(read_problem, written(tmp_path, bad))
            assert gc.isenabled() is running
        finally:
            gc.enable()


@pytest.mark.parametrize("command", [["solve"], ["check"], ["diff"]])
@pytest.mark.parametrize("content", [b"\xef\xbb\xbf{}", b"[" * 5000, b"{}", b'{"a\\nb": 1}', b'{"regions": ["a\\nb"]}'])
def test_the_command_exits_2_with_one_line(tmp_path, command, content):
    path = str(written(tmp_path, content))
    result = CliRunner().invoke(app, [*command, path, *([path] if command != ["solve"] else [])])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


WRONG = st.one_of(
    st.sampled_from(
        [None, True, False, "", "1", "ghost", "a\nb", [], {}, [[]], -1, -0.0, 0, 1.5, 10**13, -(10**400), 1e308, [None]]
    ),
    st.text(max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
)


def places(value, here=()):
    """Every place in a document, its root aside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*here, key)
        yield from places(item, (*here, key))


@st.composite
def spoiled(draw, document):
    """A document with one to three things dropped, replaced, repeated or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(document))))
        parent = document
        for step in way:
            parent = parent[step]
        match draw(st.sampled_from(["drop", "replace", "replace", "repeat", "add"])):
            case "drop":
                del parent[last]
            case "replace":
                parent[last] = draw(WRONG)
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[last]))
            case _ if isinstance(parent, dict):
                parent[draw(st.sampled_from(["surprise", "from", "model", "a\nb", ""]))] = draw(WRONG)
        if not document:
            break
    return document


def read_or_refused(read, path):
    try:
        return read(path)
    except InvalidInput:
        return refusal(read, path)


def judged(kind, text):
    """What pydantic alone says to the text."""
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError:
        return None


@examples(150)
@given(st.data())
def test_a_spoiled_problem_is_read_as_pydantic_reads_it_or_refused_in_one_line(tmp_path, data):
    stated = data.draw(problems())
    text = json.dumps(data.draw(spoiled(stated.model_dump(mode="json", by_alias=True))))
    path = written(tmp_path, text)
    wanted, found = judged(Problem, text), read_or_refused(lambda path: read_value(path, Problem), path)
    assert found == wanted if wanted is not None else isinstance(found, InvalidInput)
    if isinstance(read_or_refused(read_problem, path), Problem):
        validate(found)


@examples(100)
@given(settled(), st.data())
def test_a_spoiled_plan_is_read_as_pydantic_reads_it_or_refused_in_one_line(tmp_path, settled, data):
    text = json.dumps(data.draw(spoiled(settled[1].model_dump(mode="json", by_alias=True))))
    wanted = judged(Plan, text)
    found = read_or_refused(lambda path: read_value(path, Plan), written(tmp_path, text))
    assert found == wanted if wanted is not None else isinstance(found, InvalidInput)
    read_or_refused(read_plan, tmp_path / "file.json")


@examples(60)
@given(st.data())
def test_any_problem_and_plan_come_back_as_they_were_written(tmp_path, data):
    stated = data.draw(problems())
    plan = data.draw(plans(stated))
    assert read_problem(written(tmp_path, stated.model_dump_json(by_alias=True))) == stated
    assert read_plan(written(tmp_path, plan.model_dump_json(by_alias=True, indent=2))) == plan


@examples(200)
@given(st.data())
def test_spoiled_bytes_are_never_a_traceback(tmp_path, document, data):
    content = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        end = at + data.draw(st.integers(0, 3))
        content[at:end] = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from([b"NaN", b'"', b":", b"-", b"}"])))
    read_or_refused(read_problem, written(tmp_path, bytes(content)))


@examples(100)
@given(st.binary(max_size=40))
def test_any_bytes_at_all_are_refused(tmp_path, content):
    for read in READERS:
        read_or_refused(read, written(tmp_path, content))
