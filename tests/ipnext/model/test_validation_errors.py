"""The number of faults of a document does not grow with its lists: each one is described in the answer's process."""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import Field, ValidationError

from ipnext.model.api.resources import BlobQuery
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.validation_errors import MOST_FAULTS, first_line, invalid_input
from ipnext.model.value import Value

MANY = [{"a": 0}] * 1000
ROOT = Path(__file__).parents[3]
OWN = "what its operator or user gave this process: variables of the environment, options of a command"
DESCRIBES = {
    "ipnext/model/validation_errors.py": "faults_of",
    "activities/transition/gate/shadow.py": "has a method of this name",
    "activities/transition/gate/verdict.py": "has a method of this name",
    "ipnext/api/errors.py": "FastAPI has described them: bodies of many values are validated before, by guarded_route",
    "ipnext/cli/access/roles.py": OWN,
    "ipnext/components/settings.py": OWN,
    "ipnext/infra/kubernetes/settings.py": OWN,
    "ipnext/settings.py": OWN,
    "ipnext/temporal_access.py": OWN,
    "planner/cli/transition_commands.py": OWN,
}
"""Module that calls `errors()` -> why it may."""


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
    digests: Mapping[str, int] = Field(default={})


def test_lists_within_lists_and_objects_are_judged_alike():
    wrong = ["x"] * 100
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate({"inner": [{"items": wrong, "type": wrong}], "by_name": {"a": wrong, "b": wrong}})
    assert refused.value.error_count() == 2 + 2


def test_a_mapping_is_judged_up_to_its_first_fault():
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate({"digests": {str(number): "x" for number in range(1000)}})
    assert refused.value.error_count() == 1


def test_too_many_faults_are_counted_and_not_described():
    for members, text in ((MOST_FAULTS, "0: unknown field"), (MOST_FAULTS + 1, f"it has {MOST_FAULTS + 1} faults")):
        with pytest.raises(ValidationError) as refused:
            Inner.model_validate({str(number): 1 for number in range(members)})
        assert invalid_input(refused.value, Inner).message.startswith(text)
        assert first_line(refused.value, "file").startswith(("0: Extra", "file: it has"))


def test_only_the_reader_of_faults_describes_them():
    """pydantic describes all faults of a document or none: `faults_of` bounds them."""
    calls = {
        path.relative_to(ROOT).as_posix()
        for package in ("activities", "ipnext", "planner", "serving", "workflows")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "errors"
    }
    assert calls == DESCRIBES.keys()
    assert Inner().default == {"type": "list"}
