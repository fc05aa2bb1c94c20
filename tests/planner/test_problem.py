import json

import pytest

from ipnext.errors import InvalidInput
from planner.problem import read_plan, read_problem, read_transition, validate


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


def written(tmp_path, value):
    path = tmp_path / "problem.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_problem_comes_back_as_it_was_written(tmp_path, document):
    assert read_problem(written(tmp_path, document)).model_dump(mode="json", by_alias=True) == document


def test_optional_fields_may_be_left_out(tmp_path, document):
    for field in ("owners", "current", "objective", "limits"):
        del document[field]
    assert read_problem(written(tmp_path, document)).limits.max_moves is None


def put(path, value):
    def change(document):
        here = document
        *way, last = path
        for key in way:
            here = here[key]
        if value is None and last in here:
            del here[last]
        else:
            here[last] = value

    return change


def again(*path):
    def change(document):
        here = document
        for key in path:
            here = here[key]
        here.append(json.loads(json.dumps(here[0])))

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (put(["surprise"], 1), "surprise"),
        (put(["models", 0, "parts", 0, "options", 0, "colour"], "red"), "models[0].parts[0].options[0].colour"),
        (put(["regions"], None), "regions"),
        (put(["models", 0, "priority"], -1), "models[0].priority"),
        (put(["models", 0, "priority"], "1"), "models[0].priority"),
        (put(["models", 0, "demand", 0, "qps"], -5), "models[0].demand[0].qps"),
        (put(["models", 0, "demand", 0, "qps"], True), "models[0].demand[0].qps"),
        (put(["models", 0, "demand", 0, "qps"], 1e300), "models[0].demand[0].qps"),
        (put(["models", 0, "demand", 0, "region"], "mars"), "models[0].demand[0].region"),
        (put(["models", 0, "survive"], "zone"), "models[0].survive"),
        (put(["models", 0, "parts", 0, "min_replicas"], 1.5), "models[0].parts[0].min_replicas"),
        (put(["models", 0, "parts", 0, "options", 0, "hardware"], "tpu"), "models[0].parts[0].options[0].hardware"),
        (put(["models", 0, "parts", 0, "options", 0, "qps"], 0), "models[0].parts[0].options[0].qps"),
        (put(["rtt_ms"], [[1, 2]]), "rtt_ms"),
        (put(["rtt_ms"], [[1], [2, 3]]), "rtt_ms"),
        (put(["rtt_ms", 0, 1], -1), "rtt_ms[0][1]"),
        (put(["supply", 0, "region"], "mars"), "supply[0].region"),
        (put(["supply", 0, "hardware"], "tpu"), "supply[0].hardware"),
        (put(["regions", 1], "a"), "regions"),
        (again("supply"), "supply"),
        (again("models"), "models"),
        (again("owners"), "owners"),
        (again("models", 0, "demand"), "models[0].demand"),
        (again("models", 0, "parts"), "models[0].parts"),
        (again("models", 0, "parts", 0, "options"), "models[0].parts[0].options"),
        (again("current", "replicas"), "current.replicas"),
        (again("current", "traffic"), "current.traffic[1].fraction"),
        (put(["current", "replicas", 0, "model"], "ghost"), "current.replicas[0].model"),
        (put(["current", "replicas", 0, "part"], "ghost"), "current.replicas[0].part"),
        (put(["current", "traffic", 0, "to"], "mars"), "current.traffic[0].to"),
        (put(["limits", "max_moves"], -1), "limits.max_moves"),
        (put(["limits", "time_seconds"], 0), "limits.time_seconds"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path, document, change, field):
    change(document)
    with pytest.raises(InvalidInput) as refused:
        read_problem(written(tmp_path, document))
    assert refused.value.field == field
    assert field in refused.value.message


def test_unknown_names_come_with_the_known_ones(tmp_path, document):
    document["supply"][0]["region"] = "mars"
    with pytest.raises(InvalidInput, match="known: a, b") as refused:
        read_problem(written(tmp_path, document))
    assert refused.value.allowed == ("a", "b")


def test_an_unknown_field_comes_with_the_fields_there_are(tmp_path, document):
    document["models"][0]["demand"][0]["rate"] = 1
    with pytest.raises(InvalidInput) as refused:
        read_problem(written(tmp_path, document))
    assert refused.value.allowed == ("region", "qps")


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"regions": NaN}', '{"a": Infinity}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a": 1} x', "1" * 5000],
)
def test_text_that_is_not_strict_json_is_refused(tmp_path, text):
    with pytest.raises(InvalidInput):
        read_problem(written(tmp_path, text))


@pytest.mark.parametrize("value", [[], 3, None, "text"])
def test_json_that_is_no_object_is_refused(tmp_path, value):
    with pytest.raises(InvalidInput):
        read_problem(written(tmp_path, json.dumps(value)))


def test_numbers_beyond_a_double_are_refused(tmp_path, document):
    text = json.dumps(document).replace('"qps": 100.0', '"qps": 1e999')
    with pytest.raises(InvalidInput):
        read_problem(written(tmp_path, text))


def test_a_missing_file_a_directory_and_bytes_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="cannot read"):
        read_problem(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="cannot read"):
        read_plan(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_transition(tmp_path / "bytes.json")


def test_an_owner_that_is_not_listed_has_no_limit(problem, model):
    validate(problem(model("m", owner="someone"), supply={"a/h": 1.0}))


def test_a_model_that_no_region_reaches_is_no_error(problem, model):
    validate(problem(model("m", tolerance=0.0), supply={"a/h": 1.0}))
