"""What a snapshot's manifest may hold: as much as a snapshot needs, for each publish reads all of it."""

import pytest
from pydantic import ValidationError

from ipnext.model.registry.registry import MOST_FILES, MOST_NODES, PartGraph, Signature, SnapshotManifest

FILE = {"path": "weights.json", "size_bytes": 1, "sha256": "a" * 64}


def manifest(**more):
    return SnapshotManifest(signature=Signature(inputs=(), outputs=()), **({"engine": "torch", "files": ()} | more))


@pytest.mark.parametrize(
    "more",
    [
        {"files": [FILE] * (MOST_FILES + 1)},
        {"producer": {"torch": "x" * 1025}},
        {"producer": {"x" * 1025: "1"}},
        {"producer": {f"tool-{number}": "1" for number in range(65)}},
    ],
    ids=["files", "a text", "a name", "tools"],
)
def test_a_manifest_that_is_too_large_is_refused(more):
    with pytest.raises(ValidationError, match="at most"):
        manifest(**more)


@pytest.mark.parametrize("engine", ["", "Torch", "a b", "../x", "-x", "x" * 64, "x\n", "ü"])
def test_an_engine_has_the_characters_and_the_length_of_a_name(engine):
    with pytest.raises(ValidationError, match="engine\n  String should match pattern"):
        manifest(engine=engine)


def texts_of(schema, definitions, place):
    """Yield (place, schema) of each text in a schema."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for each in schema.get("anyOf", [schema]):
        if "$ref" in each:
            yield from texts_of(each, definitions, place)
        if each.get("type") == "string":
            yield place, each
        if isinstance(each.get("items"), dict):
            yield from texts_of(each["items"], definitions, f"{place}[]")
        if isinstance(each.get("additionalProperties"), dict):
            yield f"{place}{{}}", {"type": "string", **each.get("propertyNames", {})}
            yield from texts_of(each["additionalProperties"], definitions, f"{place}{{}}")
        for name, inner in each.get("properties", {}).items():
            yield from texts_of(inner, definitions, f"{place}.{name}")


def test_each_text_of_a_manifest_has_a_bound():
    schema = SnapshotManifest.model_json_schema()
    texts = list(texts_of(schema, schema["$defs"], ""))
    known = {".engine", ".parent", ".files[].path", ".signature.inputs[].name", ".checkpoint.base"}
    assert known < {place for place, _ in texts}
    bounds = {"maxLength", "pattern", "enum", "const"}
    assert [place for place, text in texts if not bounds & text.keys()] == []


def test_as_many_files_as_are_allowed_are_taken():
    assert len(manifest(files=[FILE] * MOST_FILES).files) == MOST_FILES


def chain(length):
    nodes = [
        {"name": f"n{i}", "part": "p", "inputs": {"x": f"n{i - 1}.y" if i else "request.x"}} for i in range(length)
    ]
    return {"nodes": nodes, "outputs": {"y": f"n{length - 1}.y"}}


def test_a_graph_has_a_bounded_number_of_nodes():
    """The API checks a graph while no other request is answered."""
    assert len(PartGraph.model_validate(chain(MOST_NODES)).nodes) == MOST_NODES
    with pytest.raises(ValidationError, match=f"at most {MOST_NODES} items"):
        PartGraph.model_validate(chain(MOST_NODES + 1))


def test_a_circle_is_named_by_its_nodes():
    graph = chain(5)
    graph["nodes"][1]["inputs"]["x"] = "n3.y"
    with pytest.raises(ValidationError, match=r"a circle among \['n1', 'n2', 'n3'\]"):
        PartGraph.model_validate(graph)


def test_tensors_are_bounded_and_their_names_can_be_shown():
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1]}
    for wrong, message in (
        ({"inputs": [tensor] * 4097, "outputs": []}, "at most 4096"),
        ({"inputs": [{**tensor, "name": "\x1b[2J"}], "outputs": []}, "can't be shown"),
        ({"inputs": [{**tensor, "shape": [1] * 65}], "outputs": []}, "at most 64"),
    ):
        with pytest.raises(ValidationError, match=message):
            Signature.model_validate(wrong)


def test_a_list_of_faults_is_refused_by_the_first():
    with pytest.raises(ValidationError) as raised:
        Signature.model_validate({"inputs": [{}] * 4000, "outputs": []})
    assert len(raised.value.errors()) <= 3


def test_messages_name_some_of_many_names():
    inputs = [{"name": f"x{n}", "datatype": "FP32", "shape": [-1]} for n in range(4000)]
    with pytest.raises(ValidationError, match="and 3990 more"):
        Signature.model_validate({"inputs": inputs, "outputs": [], "request_inputs": ["y"]})
