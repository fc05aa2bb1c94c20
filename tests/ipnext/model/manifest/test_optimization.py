"""The pipeline in a manifest: exactly one kind a step, limits, and the part that a step derives from."""

import pytest
from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.optimization import OptimizationStep, steps_digest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.value import canonical_json

INT8 = {"quantize": {"embeddings": "int8", "maxAucDrop": 0.001}}


def step(given):
    return OptimizationStep.model_validate(given)


def spec(*steps, **parts):
    engines = parts or {"ranker": "torch"}
    nodes = [{"name": part, "part": part, "inputs": {}} for part in engines]
    return {
        "parts": [
            {"name": name, "engine": engine, "hardware": [{"kind": "cpu", "units": 1, "qps": 1}]}
            for name, engine in engines.items()
        ],
        "graph": {"nodes": nodes, "outputs": {"score": f"{nodes[0]['name']}.score"}},
        "demand": [{"region": "eu", "qps": 1}],
        "optimization": list(steps),
    }


def test_the_contract_is_read_and_written_alike():
    found = ModelSpec.model_validate(spec(INT8)).optimization
    assert [(each.kind, each.spec.max_auc_drop, each.settings["embeddings"]) for each in found] == [
        ("quantize", 0.001, "int8")
    ]
    assert step(OptimizationStep.model_validate_json(canonical_json(found[0])).model_dump(by_alias=True)) == found[0]


def test_settings_of_a_kind_have_no_field_that_every_step_has():
    assert set(step(INT8).settings) == {"embeddings", "tables"}
    assert step({"plugin": {"kind": "prune", "settings": {"share": 0.5}, "maxError": 1}}).settings == {"share": 0.5}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "exactly one of quantize, compile, plugin; got none"),
        ({**INT8, "plugin": {"kind": "x"}}, "got quantize and plugin"),
        ({"quantize": {}}, "quantize.embeddings"),
        ({"quantize": {"embeddings": "int3"}}, "'int8' or 'int4'"),
        ({"quantize": {"embeddings": "int8", "maxAucDrop": -1}}, "greater than or equal to 0"),
        ({"quantize": {"embeddings": "int8", "maxAucDrop": "0.1"}}, "valid number"),
        ({"quantize": {"embeddings": "int8", "minTopKOverlap": 1.1}}, "less than or equal to 1"),
        ({"quantize": {"embeddings": "int8", "topK": 0}}, "greater than or equal to 1"),
        ({"quantize": {"embeddings": "int8", "onRefusal": "serve"}}, "'refuse' or 'keep'"),
        ({"quantize": {"embeddings": "int8", "tables": []}}, "at least 1 item"),
        ({"quantize": {"embeddings": "int8", "bits": 8}}, "Extra inputs are not permitted"),
        ({"compile": {"cpu": "avx2"}}, "'x86-64-v3', 'x86-64-v4' or 'native'"),
        ({"compile": {"tolerance": -1}}, "greater than or equal to 0"),
        ({"compile": {}, **INT8}, "got quantize and compile"),
        ({"prune": {}}, "Extra inputs are not permitted"),
    ],
)
def test_what_is_wrong_is_named(given, told):
    with pytest.raises(ValidationError) as refused:
        step(given)
    assert told in str(refused.value)


def test_an_unknown_kind_is_refused_with_those_that_there_are():
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "m"}, "spec": spec({"prune": {}})}
    with pytest.raises(
        InvalidInput, match=r"optimization.0.prune: unknown field; allowed here: compile, plugin, quantize"
    ):
        parse_manifest(document)


@pytest.mark.parametrize(
    ("given", "parts", "told"),
    [
        ({"embeddings": "int8", "part": "x"}, {"ranker": "torch"}, "'x' is no part of the model; allowed: ranker"),
        ({"embeddings": "int8"}, {"a": "torch", "b": "torch"}, "has to be given for a model of several parts"),
        ({"embeddings": "int8", "part": "e"}, {"a": "torch", "e": "other"}, "'e' has engine 'other'; allowed: a"),
        ({"embeddings": "int8"}, {"e": "other"}, "derives from a part of engine torch; the model has none"),
    ],
)
def test_a_step_without_a_part_to_derive_from_is_refused(given, parts, told):
    with pytest.raises(ValidationError) as refused:
        ModelSpec.model_validate(spec({"quantize": given}, **parts))
    assert "optimization.0.quantize" in str(refused.value)
    assert told in str(refused.value)


def test_the_one_part_of_torch_need_not_be_named():
    ModelSpec.model_validate(spec(INT8, a="torch", e="other"))


def test_pipelines_differ_by_their_digest():
    int8, int4 = step(INT8), step({"quantize": {"embeddings": "int4"}})
    assert len({steps_digest(each) for each in ((), (int8,), (int4,), (int8, int4))}) == 4
    assert steps_digest((int8,)) == steps_digest((step(INT8),))


def compiling(*steps, setting=True):
    document = spec(*steps)
    document["parts"][0]["settings"] = {"compile": setting}
    return document


def test_a_compilation_is_the_last_step_of_a_part_whose_hosts_run_libraries():
    found = ModelSpec.model_validate(compiling(INT8, {"compile": {"maxLatencyRatio": 0.9}})).optimization[1]
    assert (found.kind, found.settings) == ("compile", {"cpu": "x86-64-v3", "tolerance": 1e-5})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (spec({"compile": {}}), r"optimization.0.compile: hosts of part ranker would not run the library"),
        (compiling({"compile": {}}, setting=False), r"settings.compile, such as \{compile: true\}"),
        (compiling({"compile": {}}, INT8), r"optimization.1.quantize: comes after the step 0, compile, of part ranker"),
        (compiling({"compile": {}}, {"compile": {}}), r"optimization.1.compile: comes after the step 0"),
    ],
)
def test_a_compilation_without_effect_is_refused(given, told):
    with pytest.raises(ValidationError, match=told):
        ModelSpec.model_validate(given)


TWO = ("small", "large")


def on_two(*steps, compiled=True):
    document = spec(*steps)
    document["parts"][0]["hardware"] = [{"kind": kind, "units": 1, "qps": 1} for kind in TWO]
    document["parts"][0]["settings"] = {"compile": compiled}
    return document


def quantize(*hardware):
    return {"quantize": {**INT8["quantize"], "hardware": list(hardware)}}


def test_steps_may_name_hardware_kinds_and_each_kind_has_its_own_last_step():
    compiled, other = ({"compile": {"hardware": [kind], "cpu": "x86-64-v4"}} for kind in ("large", "small"))
    first, second, _ = ModelSpec.model_validate(on_two(compiled, quantize("small"), other)).optimization
    assert (first.takes("large"), first.takes("small"), second.takes("small")) == (True, False, True)
    assert "hardware" not in second.settings
    assert second.bare == step(INT8)


def test_a_step_without_hardware_is_written_as_before_the_field_existed():
    assert "hardware" not in canonical_json(step(INT8))
    named = step(quantize("small"))
    assert steps_digest((named,)) != steps_digest((step(INT8),)) == steps_digest((named.bare,))


NO_KIND = "optimization.0.quantize.hardware: 'tpu' is no hardware kind of part ranker; allowed: small, large"
NO_STEP = "split: is no step, since it changes the parts of the model; allowed: quantize, compile, plugin; write it as"


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((quantize("tpu"),), NO_KIND),
        ((quantize("small", "small"),), "optimization.0.quantize.hardware: 'small' is named twice"),
        ((quantize(),), "at least 1 item"),
        (({"compile": {"hardware": ["large"]}}, INT8), "comes after the step 0, compile, of part ranker on large"),
        (({"compile": {}}, {"compile": {"hardware": ["small"]}}), "of part ranker on small; allowed: before it"),
        (({"split": {"parts": []}},), NO_STEP),
    ],
)
def test_hardware_that_does_not_fit_is_refused_with_what_is_allowed(steps, told):
    with pytest.raises(ValidationError) as refused:
        ModelSpec.model_validate(on_two(*steps))
    assert told in str(refused.value)


def split_by(*parts):
    """A policy of parts with these hardware kinds, and the rest."""
    listed = [{"name": f"part-{i}", "modules": [str(i)], "hardware": list(kinds)} for i, kinds in enumerate(parts)]
    return {"graph": None, "split": {"parts": listed, "default": "rest"}}


@pytest.mark.parametrize("split", [split_by(()), split_by(("large",)), split_by(({"kind": "tpu", "qps": 5},))])
def test_a_split_model_has_steps_for_the_kinds_of_the_parts_that_are_made_of_it(split):
    kinds = ["small", "large", *(["tpu"] if "tpu" in str(split) else [])]
    found = ModelSpec.model_validate({**on_two(*(quantize(kind) for kind in kinds)), **split})
    assert set(found.kinds_of(found.parts[0])) == set(kinds)


def test_a_kind_that_no_part_of_the_split_has_is_refused_with_those_that_they_have():
    split = split_by(("large",), ({"kind": "tpu", "qps": 5},))
    split["split"]["default"] = "part-0"
    told = (
        "quantize.hardware: 'small' is no hardware kind of the parts that spec.split makes of ranker; allowed: large, "
    )
    with pytest.raises(ValidationError, match=f"optimization.0.{told}tpu"):
        ModelSpec.model_validate({**on_two(quantize("small")), **split})


def test_a_model_that_is_split_is_not_compiled():
    split = {"parts": [{"name": "sparse", "modules": ["tables"]}], "default": "dense"}
    for step in ({"compile": {}}, {"compile": {"hardware": ["cpu"]}}):
        with pytest.raises(ValidationError, match="a library can't be split"):
            ModelSpec.model_validate({**compiling(step), "graph": None, "split": split})
