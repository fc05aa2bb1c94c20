"""What is told of a manifest with faults: the first one, and how many more there are."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest, parse_manifests
from ipnext.model.manifest.yaml_documents import read_documents

HARDWARE = [{"kind": "cpu", "units": 1, "qps": 1}]


def document(part, **spec):
    whole = {"parts": [{"name": "llm", "hardware": HARDWARE} | part], "demand": [{"region": "eu", "qps": 1}], **spec}
    return {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "a"}, "spec": whole}


def refusal(part, **spec):
    with pytest.raises(InvalidInput) as caught:
        parse_manifest(document(part, **spec))
    return caught.value.message


def test_one_fault_in_the_only_part_is_one_fault():
    told = refusal({"engine": "vllm", "settings": {"maxModelLen": "many"}})
    assert told.startswith("spec.parts.0: settings.maxModelLen:")
    assert "more)" not in told


def test_further_faults_are_counted():
    told = refusal({"memoryBytes": -1}, budgetPerHour=-1)
    assert told.startswith("spec.parts.0.memoryBytes: Input should be greater than 0 (got -1)")
    assert told.endswith("(and 1 more)")


def test_a_list_that_is_empty_itself_is_told():
    assert refusal({}, demand=[]) == "spec.demand: The list should have at least 1 item, not 0 (got [])"


def test_a_hardware_kind_that_a_part_names_twice_is_refused():
    told = refusal({"hardware": [*HARDWARE, {"kind": "cpu", "units": 2, "qps": 3}]})
    assert told.startswith("spec.parts.0: hardware: part 'llm' names the kind 'cpu' 2 times; allowed: once")


def test_forms_are_named_as_in_yaml():
    assert refusal({"settings": [1]}) == "spec.parts.0.settings: Input should be a mapping (got [1])"
    assert refusal({}, demand=3) == "spec.demand: Input should be a list (got 3)"


def test_an_unknown_setting_is_refused_whatever_the_engine():
    told = refusal({"settings": {"maxModelLen": 512}})
    assert (
        told
        == "spec.parts.0: settings.maxModelLen: unknown for engine torch (got 512); allowed: threads, batching, compile"
    )


def test_a_model_that_is_named_as_a_path_of_the_data_plane_is_refused():
    named = document({}) | {"metadata": {"name": "stats", "owner": "a"}}
    with pytest.raises(InvalidInput, match=r"metadata\.name: 'stats' is a path of the data plane"):
        parse_manifest(named)


@pytest.mark.parametrize(
    "text", ["a: [", "at: 2026-13-45", "at: 2026-01-01T99:00:00", "n: !!int x", "[" * 3000, "? [a]\n: b"]
)
def test_text_that_is_no_yaml_is_refused_in_words(text):
    with pytest.raises(InvalidInput, match="not YAML"):
        parse_manifests(text)


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        ("kind: Fleet\nkind: Model\n", "kind", "1 and 2"),
        ("kind: Fleet\nspec:\n  supply: []\n  'supply': []\n", "supply", "3 and 4"),
        ("kind: Fleet\n---\nspec: {a: 1, a: 2}\n", "a", "3 and 3"),
        ("spec:\n- {x: &a {q: 1, q: 2}}\n", "q", "2 and 2"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_its_lines(text, name, lines):
    with pytest.raises(InvalidInput, match=f"{name}: is given twice in one mapping, in lines {lines}") as refused:
        parse_manifests(text)
    assert refused.value.field == name


def test_a_merged_mapping_may_be_overridden():
    (found,) = read_documents("base: &b {x: 1, y: 2}\nother: {<<: *b, x: 3}\nagain: {<<: *b}\n")
    assert (found["other"], found["again"]) == ({"x": 3, "y": 2}, {"x": 1, "y": 2})


HUGE, TINY = 1e300, 1e-300


@pytest.mark.parametrize(
    ("part", "spec", "field"),
    [
        ({}, {"priority": HUGE}, "spec.priority"),
        ({}, {"priority": TINY}, "spec.priority"),
        ({}, {"budgetPerHour": HUGE}, "spec.budgetPerHour"),
        ({}, {"latencyToleranceMs": HUGE}, "spec.latencyToleranceMs"),
        ({}, {"demand": [{"region": "eu", "qps": HUGE}]}, "spec.demand.0.qps"),
        ({}, {"demand": [{"region": f"r{i}", "qps": 1} for i in range(1025)]}, "spec.demand"),
        ({"hardware": [{"kind": "cpu", "units": 1, "qps": HUGE}]}, {}, "spec.parts.0.hardware.0.qps"),
        ({"hardware": [{"kind": "cpu", "units": 1, "qps": TINY}]}, {}, "spec.parts.0.hardware.0.qps"),
        ({"hardware": [{"kind": "cpu", "units": HUGE, "qps": 1}]}, {}, "spec.parts.0.hardware.0.units"),
        ({"hardware": [{"kind": "cpu", "units": 1e-6, "qps": 1}]}, {}, "spec.parts.0.hardware.0.units"),
        ({"hardware": [{"kind": f"k{i}", "units": 1, "qps": 1} for i in range(65)]}, {}, "spec.parts.0.hardware"),
        ({"minReplicas": 10**18}, {}, "spec.parts.0.minReplicas"),
        ({"memoryBytes": 10**30}, {}, "spec.parts.0.memoryBytes"),
        ({}, {"rollout": {"keepWarm": 10**30}}, "spec.rollout.keepWarm"),
        ({}, {"rollout": {"holdSeconds": HUGE}}, "spec.rollout.holdSeconds"),
        ({}, {"rollout": {"gate": {"waitSeconds": HUGE}}}, "spec.rollout.gate.waitSeconds"),
        ({}, {"parts": [{"name": f"p{i}", "hardware": HARDWARE} for i in range(257)]}, "spec.parts"),
    ],
)
def test_a_figure_that_no_plan_can_take_is_refused_by_its_field(part, spec, field):
    """Every plan of the fleet would fail for it, and those of all other owners with it."""
    assert refusal(part, **spec).startswith(f"{field}: ")


def test_more_parts_than_a_plan_takes_are_refused():
    """The plan of all other models would take minutes for them."""
    parts = [{"name": f"p{i}", "hardware": HARDWARE} for i in range(65)]
    expected = "spec: parts: 65 have processes of their own; allowed: 64, and adapters beside them"
    assert refusal({}, parts=parts).startswith(expected)
    assert "processes of their own" not in refusal({}, parts=parts[1:])


def test_adapters_do_not_count_among_the_parts_that_a_plan_knows():
    llm = {"name": "llm", "engine": "vllm", "hardware": HARDWARE}
    adapters = [{"name": f"a{i}", "engine": "vllm", "adapterOf": "llm"} for i in range(255)]
    spec = {"task": "generation", "parts": [llm, *adapters], "demand": [{"region": "eu", "qps": 1}]}
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "a"}, "spec": spec}
    assert len(parse_manifest(document).spec.hosted_parts) == 1


def test_the_schema_for_allowed_fields_is_made_once(monkeypatch):
    """It takes as long as ten refusals, and anybody may send fields that do not exist."""
    refusal({}, first=1)
    made = []
    monkeypatch.setattr(ModelManifest, "model_json_schema", lambda **_: made.append(1) or {})
    assert "unknown field; allowed here: access, " in refusal({}, second=1)
    assert made == []


def test_a_part_that_is_timed_and_is_none_of_the_model_is_refused():
    limits = {"liveLatency": {"maxP50Ratio": 1.2, "part": "other"}}
    assert refusal({}, validation=limits) == "spec: validation.liveLatency.part: 'other' is unknown; known: ['llm']"
    parse_manifest(document({}, validation={"liveLatency": {"maxP50Ratio": 1.2, "part": "llm"}}))
