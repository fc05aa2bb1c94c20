"""The number of faults of a document does not grow with its lists: each one is described in the answer's process."""

import pytest
from pydantic import Field, ValidationError

from ipnext.model.api.resources import BlobQuery
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.value import Value

MANY = [{"a": 0}] * 1000


def of(kind, **spec):
    return {"apiVersion": "ipnext/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (
            FleetManifest,
            of("Fleet", regions=MANY, rttMs=[["x"] * 1000] * 1000, hardware=MANY, supply=MANY, owners=MANY),
        ),
        (ModelManifest, of("Model", parts=MANY, demand=MANY, graph={"nodes": MANY, "outputs": {}})),
        (ModelManifest, of("Model", parts=[{"name": "a", "hardware": MANY}], demand=[], split={"parts": MANY})),
        (SnapshotManifest, {"engine": 1, "signature": {"inputs": MANY, "outputs": MANY}, "files": MANY}),
        (BlobQuery, {"digests": ["x"] * 1000}),
    ],
)
def test_a_list_is_judged_up_to_its_first_fault(model, document):
    with pytest.raises(ValidationError) as refused:
        model.model_validate(document)
    assert refused.value.error_count() < 30


class Inner(Value):
    items: frozenset[int] = frozenset()
    type: list[int] = Field(default=[])
    default: dict[str, object] = Field(default={"type": "list"})


class Outer(Value):
    inner: tuple[Inner, ...] = ()
    by_name: dict[str, list[Inner | int]] = Field(default={})


def test_lists_within_lists_and_objects_are_judged_alike():
    wrong = ["x"] * 100
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate({"inner": [{"items": wrong, "type": wrong}], "by_name": {"a": wrong, "b": wrong}})
    assert refused.value.error_count() == 2 + 2 * 2
    assert Inner().default == {"type": "list"}
