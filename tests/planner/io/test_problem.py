import json
import pickle

import pytest
from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import ReplicaCount
from planner.io.problem import read_plan, read_problem, read_transition, validate


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
        (put(["regions"], []), "regions"),
        (put(["hardware"], []), "hardware"),
        (put(["supply"], []), "supply"),
        (put(["models", 0, "demand"], []), "models[0].demand"),
        (put(["models", 0, "demand", 0, "qps"], 0), "models[0].demand"),
        (put(["models", 0, "parts"], []), "models[0].parts"),
        (put(["models", 0, "parts", 0, "options"], []), "models[0].parts[0].options"),
        (put(["models", 0, "latency_tolerance_ms"], 0.5), "models[0].latency_tolerance_ms"),
        (put(["models", 0, "owner"], ""), "models[0].owner"),
        (put(["models", 0, "model"], "m" * 257), "models[0].model"),
        (put(["models", 0, "parts", 0, "part"], "p\n"), "models[0].parts[0].part"),
        (put(["owners", 0, "owner"], ""), "owners[0].owner"),
        (put(["regions", 0], ""), "regions[0]"),
        (put(["rtt_ms", 0, 0], -0.0), "rtt_ms[0][0]"),
        (put(["rtt_ms", 0, 0], "1"), "rtt_ms[0][0]"),
        (put(["rtt_ms", 0], 1), "rtt_ms[0]"),
        (put(["models"], {}), "models"),
        (put(["models", 0], []), "models[0]"),
        (put(["current"], []), "current"),
        (put(["current", "replicas", 0, "count"], 1.0), "current.replicas[0].count"),
        (put(["current", "traffic", 0, "fraction"], 1.5), "current.traffic[0].fraction"),
        (put(["current", "traffic", 0, "from"], "mars"), "current.traffic[0].from"),
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


def test_no_models_is_a_valid_problem(problem):
    validate(problem(supply={"a/h": 1.0}))


def test_a_demand_of_zero_beside_others_is_valid_and_need_not_be_reached(problem, model):
    far = {"rtt_ms": [[1.0, 10.0], [10.0, 10.0]]}
    validate(problem(model("m", {"a": 1.0, "b": 0.0}, tolerance=5.0), supply={"a/h": 1.0}, **far))


def test_a_tolerance_that_just_reaches_is_valid(problem, model):
    validate(problem(model("m", tolerance=1.0), supply={"a/h": 1.0}))


def test_a_tolerance_that_reaches_no_region_comes_with_the_smallest_that_would_do(problem, model):
    stated = problem(
        model("near", tolerance=9.0),
        model("m", {"a": 1.0, "b": 2.0, "c": 3.0}, tolerance=6.5),
        supply={"a/h": 1.0},
        regions=["a", "b", "c"],
        rtt_ms=[[1.0, 9.0, 9.0], [9.0, 7.25, 8.0], [9.0, 9.0, 7.0]],
    )
    with pytest.raises(InvalidInput) as refused:
        validate(stated)
    assert refused.value.field == "models[1].latency_tolerance_ms"
    assert refused.value.value == 6.5
    assert refused.value.allowed == ("at least 7.25",)


@pytest.mark.parametrize("demand", [(), (0.0,), (0.0, 0.0)])
def test_a_model_without_demand_is_refused(problem, model, demand):
    stated = problem(model("m", dict(zip("ab", demand, strict=False)) or {"a": 0.0}), supply={"a/h": 1.0})
    if not demand:
        (only,) = stated.models
        stated = stated.model_copy(update={"models": (only.model_copy(update={"demand": ()}),)})
    with pytest.raises(InvalidInput, match="qps above 0") as refused:
        validate(stated)
    assert refused.value.field == "models[0].demand"


def test_what_others_leave_may_be_nothing_but_a_file_offers_something(problem, model, tmp_path):
    stated = problem(model("m"), supply={"a/h": 0.0, "b/h": 0.0})
    validate(stated)
    with pytest.raises(InvalidInput, match="units above 0") as refused:
        read_problem(written(tmp_path, stated.model_dump(mode="json", by_alias=True)))
    assert refused.value.field == "supply"


def test_a_fleet_without_a_supply_entry_is_refused(problem, model):
    stated = problem(model("m"), supply={"a/h": 1.0}).model_copy(update={"supply": ()})
    with pytest.raises(InvalidInput) as refused:
        validate(stated)
    assert refused.value.field == "supply"


def test_figures_of_a_problem_in_memory_are_looked_at_too(problem, model):
    stated = problem(model("m"), supply={"a/h": 1.0})
    (item,) = stated.supply
    for figure in (float("nan"), float("inf"), 1e13, 10**400):
        with pytest.raises(InvalidInput) as refused:
            validate(stated.model_copy(update={"supply": (item.model_copy(update={"units": figure}),)}))
        assert refused.value.field == "supply[0].units"


def test_only_a_few_known_names_are_listed(problem, model):
    stated = problem(*(model(f"m{i:03}") for i in range(200)), supply={"a/h": 1.0})
    ghost = {"model": "ghost", "part": "p", "region": "a", "hardware": "h", "count": 1}
    current = type(stated.current).model_validate({"replicas": [ghost]})
    with pytest.raises(InvalidInput, match="and 190 more") as refused:
        validate(stated.model_copy(update={"current": current}))
    assert len(refused.value.message) < 200
    assert len(refused.value.allowed) == 10


def test_names_of_a_row_are_told_apart_where_they_hold_slashes(problem, model):
    rows = [
        {"model": "m/p", "part": "q", "region": "a", "hardware": "h", "count": 1},
        {"model": "m", "part": "p/q", "region": "a", "hardware": "h", "count": 1},
    ]
    one = model("m/p", parts={"q": {"h": (1.0, 100.0)}})
    other = model("m", parts={"p/q": {"h": (1.0, 100.0)}})
    validate(problem(one, other, supply={"a/h": 1.0}, replicas=rows))


def test_rows_from_a_file_are_as_good_as_any(tmp_path, document):
    """They are packed; all that a value can do they can."""
    row = read_problem(written(tmp_path, document)).current.replicas[0]
    validated = ReplicaCount(**document["current"]["replicas"][0])
    assert row == validated
    assert hash(row) == hash(validated)
    assert row.model_dump() == validated.model_dump()
    assert row.model_fields_set == validated.model_fields_set
    assert pickle.loads(pickle.dumps(row)) == validated
    other = row.model_copy(update={"count": 9})
    assert (other.count, row.count, row.model_fields_set) == (9, 1, validated.model_fields_set)
    with pytest.raises(ValidationError):
        row.count = 2


def test_a_trusted_row_needs_every_value():
    with pytest.raises(ValueError, match="argument"):
        ReplicaCount.from_trusted("m", "p", "a", "h")
