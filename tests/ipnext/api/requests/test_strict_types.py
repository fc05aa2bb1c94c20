"""Manifests and bodies are not converted: numbers are numbers, booleans booleans, texts texts; in each field."""

import pytest
from pydantic import BaseModel, ValidationError

from ipnext.devfile import DevFile
from ipnext.errors import InvalidInput
from ipnext.model.manifest.parser import KINDS, parse_manifests
from ipnext.model.settings.engine import BatchingSettings, TorchSettings, VllmSettings
from ipnext.model.settings.kv_transfer import KvTransferSettings
from ipnext.model.settings.routing import RoutingSettings
from ipnext.model.value import Value, WrittenValue
from ipnext.model.wire import decode
from tests.ipnext.api.surface import collect_dependants

SETTINGS = (VllmSettings, TorchSettings, BatchingSettings, KvTransferSettings, RoutingSettings, DevFile)
SAMPLES = {
    "boolean": (True, False),
    "integer": (0, 1, 100),
    "number": (1.0, 2.5),
    "string": ("1", "100", "1.5", "true", "yes", ""),
    "null": (None,),
}
"""Type of JSON -> values of it that pydantic would convert to another one."""
WIDER = {("TorchSettings", "batching"): {True, False}}
"""Field of a model -> values that it takes and its schema does not name."""
ALSO = {"number": {"integer"}}
"""Type -> those whose values it has, too."""


def bodies_of(app):
    """Return the types of all bodies that an endpoint has."""
    found = {}
    for route in app.routes:
        for each in getattr(route, "routes", [route]):
            collect_dependants(each, found)
    fields = [field for dependant in found.values() for field in dependant.body_params]
    return {field.field_info.annotation for field in fields}


def models_below(schema, definitions, found):
    """Collect the names of the models that a schema refers to."""
    if isinstance(schema, list):
        for each in schema:
            models_below(each, definitions, found)
    elif isinstance(schema, dict):
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name and name not in found:
            found.add(name)
            models_below(definitions[name], definitions, found)
        for each in schema.values():
            models_below(each, definitions, found)


def classes_of(base):
    return {each for child in base.__subclasses__() for each in (child, *classes_of(child))}


def alternatives(schema, definitions):
    """Yield the schemas of which a value has to fit one."""
    if "$ref" in schema:
        yield from alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    elif "anyOf" in schema or "oneOf" in schema:
        for each in schema.get("anyOf") or schema["oneOf"]:
            yield from alternatives(each, definitions)
    else:
        yield schema


def wrong_values(schema, definitions):
    """Yield (path, document) of values whose type the schema does not have, also in lists and mappings."""
    found = list(alternatives(schema, definitions))
    types = {each.get("type") for each in found}
    if None in types:  # anything, or texts that are enumerated
        return
    types |= {also for kind in types for also in ALSO.get(kind, ())}
    for kind, values in SAMPLES.items():
        if kind not in types:
            yield from (((), value) for value in values)
    for each in found:
        items = each.get("items") or next(iter(each.get("prefixItems", ())), None)
        if each["type"] == "array" and items:
            yield from (((0, *path), [value]) for path, value in wrong_values(items, definitions))
        if each["type"] == "object" and isinstance(each.get("additionalProperties"), dict):
            inner = wrong_values(each["additionalProperties"], definitions)
            yield from ((("name", *path), {"name": value}) for path, value in inner)


def fields_of(model):
    """Yield (field, path, document) of each value of a field of a model that has a wrong type."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    (own,) = alternatives(schema, definitions)
    for field, kind in own["properties"].items():
        for path, value in wrong_values(kind, definitions):
            if path or not any(value is taken for taken in WIDER.get((model.__name__, field), ())):
                yield field, path, value


@pytest.fixture
def public(rooms):
    """Each model of a manifest, a body or settings, with the models of its fields."""
    roots = {*KINDS.values(), *SETTINGS, *bodies_of(rooms.app())}
    assert all(issubclass(root, Value | WrittenValue) for root in roots)
    names = {root.__name__ for root in roots}
    for root in roots:
        schema = root.model_json_schema(by_alias=True)
        models_below(schema, schema.get("$defs", {}), names)
    return {each for each in classes_of(BaseModel) if each.__name__ in names and each.__module__.startswith("ipnext.")}


def is_refused_at(model, field, path, value):
    """Whether the value is refused at its place, and not for its neighbours alone."""
    place = (field, *path)
    try:
        model.model_validate({field: value})
    except ValidationError as error:
        found = error.errors(include_url=False)
        return any(each["type"] != "missing" and _leads_to(each["loc"], place) for each in found)
    return False


def _leads_to(location, place):
    """Whether an error is at a place; a union adds the names of its members."""
    steps = iter(location)
    return all(any(step == wanted for step in steps) for wanted in place if wanted != "name") or (
        "name" in place and location[:1] == place[:1]
    )


def test_each_field_refuses_values_of_another_type(public):
    assert len(public) > 40
    cases = [(model, *case) for model in public for case in fields_of(model)]
    assert len(cases) > 2_000
    taken = [
        (model.__name__, field, value)
        for model, field, path, value in cases
        if not is_refused_at(model, field, path, value)
    ]
    assert taken == []


def test_a_float_may_be_written_as_an_integer(rooms):
    document = rooms.model_document(qps=20)
    assert KINDS["Model"].model_validate(document).spec.demand[0].qps == 20.0


MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: ranker, owner: search}
spec:
  parts: [{name: dense, hardware: [{kind: cpu, units: 1, qps: 100}]}]
  demand: [{region: eu, qps: QPS}]
"""


@pytest.mark.parametrize(
    ("written", "said"),
    [("'100'", "should be a valid number (got '100')"), ("yes", "should be a valid number (got True)")],
)
def test_a_quoted_number_of_yaml_is_refused_by_its_field(written, said):
    with pytest.raises(InvalidInput) as refused:
        parse_manifests(MANIFEST.replace("QPS", written))
    assert refused.value.field == "spec.demand.0.qps"
    assert said in refused.value.message


async def test_a_body_is_not_converted(applied):
    for qps in (True, "100"):
        document = applied.rooms.model_document(qps=qps)
        refused = await applied.http.put("/v1/models/ranker", json=document)
        assert (refused.status_code, refused.json()["code"]) == (400, "InvalidInput")
        assert refused.json()["value"] == qps


class Message(Value):
    number: float
    flag: bool


def test_messages_between_components_are_converted():
    assert decode(Message, '{"number": "1.5", "flag": "yes"}') == Message(number=1.5, flag=True)
