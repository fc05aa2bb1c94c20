"""Builds of before and after a change read each other: each type on the wire takes one more field, at every depth.

The types are found by walking the signatures of all workflows and activities, so that a new one can't be forgotten.
"""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from temporalio import activity, workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from activities.planning.solver import ThreadSolver
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.host_control import HostHolds, HostState
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.deployment.router_table import RouterState, RouterTable
from ipnext.model.fleet import FleetSpec
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import Plan, PlanDiff, Problem, ReplicaCount
from ipnext.model.planning.transition import Transition
from ipnext.model.registry.registry import SplitLayout
from ipnext.model.wire import LONGEST_REMEMBERED, decode, decode_frozen
from ipnext.payloads import DATA_CONVERTER
from tests.workflows.builds.shapes import UNKNOWN, models_of, shape
from workflows.policies import STEPS
from workflows.worker import WORKFLOWS, lifecycle_activities, planner_activities

ROOT = Path(__file__).parents[3]
HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))

BETWEEN_COMPONENTS = (Deployment, HostHolds, HostState, RegionState, RouteTable, RouterState, RouterTable)
IN_THE_STORE = (FleetSpec, FreezeManifest, SplitLayout, ModelManifest, Plan, PlanDiff, Problem, Transition)


def types_of_workflows() -> set[type]:
    found: set[Any] = set()
    for kind in WORKFLOWS:
        definition = workflow._Definition.must_from_class(kind)
        found.update(definition.arg_types or (), {definition.ret_type})
        for handler in (*definition.signals.values(), *definition.updates.values(), *definition.queries.values()):
            found.update(handler.arg_types or (), {getattr(handler, "ret_type", None)})
    return {kind for kind in found if models_of(kind)}


def types_of_activities(house: Any, no_engine: Any) -> set[type]:
    found: set[Any] = {step.answer for step in STEPS}
    ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, no_engine)
    for method in (*ours, *planner_activities(house.store, ThreadSolver())):
        definition = activity._Definition.must_from_callable(method)
        found.update(definition.arg_types or (), {definition.ret_type})
    return {kind for kind in found if models_of(kind)}


def unknown_fields(read: Callable[[], object]) -> list[tuple[Any, ...]]:
    """Where reading finds fields that the type does not know."""
    try:
        read()
    except ValidationError as error:
        return [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
    return []


def test_each_type_in_a_payload_takes_a_field_that_it_does_not_know(house, no_engine):
    kinds = types_of_workflows() | types_of_activities(house, no_engine)
    converter = DATA_CONVERTER.payload_converter
    reached: set[type] = set().union(*map(models_of, kinds))
    assert len(kinds) >= 30
    assert len(reached) > len(kinds) + 5, "nested types are among them"
    nested = 0
    for kind in kinds:
        newer = shape(kind)
        strict = unknown_fields(lambda kind=kind, newer=newer: TypeAdapter(kind).validate_python(newer))
        nested += len([place for place in strict if len(place) > 1])
        assert strict, f"{kind}: the sample says nothing"
        (payload,) = converter.to_payloads([newer])
        assert not unknown_fields(lambda kind=kind, payload=payload: converter.from_payload(payload, kind)), kind
    assert nested > 20


@pytest.mark.parametrize("kind", [*BETWEEN_COMPONENTS, *IN_THE_STORE], ids=lambda kind: kind.__name__)
def test_what_components_and_the_store_hold_takes_one_too(kind):
    newer = json.dumps(shape(kind))
    assert unknown_fields(lambda: kind.model_validate_json(newer))
    assert not unknown_fields(lambda: decode(kind, newer))


def test_nothing_between_components_is_read_strictly():
    """Snapshots are: they are named by their digest, which an unknown field is part of."""
    strict = re.compile(r"(\w+)\.model_validate_json\(|TypeAdapter\(.*validate_json\(")
    for place in ("store", "infra"):
        for file in (ROOT / "ipnext" / place).rglob("*.py"):
            found = {match[1] for match in strict.finditer(file.read_text())}
            assert found <= {"SnapshotManifest"}, file


def newer(history: dict[str, Any]) -> dict[str, Any]:
    """The history as a newer build would have written it: one more field in every JSON object that travels."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        if set(value) >= {"metadata", "data"} and _is_json(value):
            content = json.loads(base64.b64decode(value["data"]))
            if isinstance(content, dict):
                data = base64.b64encode(json.dumps({**content, **UNKNOWN}).encode()).decode()
                return {**value, "data": data}
            return value
        return {name: walk(item) for name, item in value.items()}

    return walk(history)


def _is_json(payload: dict[str, Any]) -> bool:
    return base64.b64decode(payload["metadata"].get("encoding", "")) == b"json/plain"


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_history_of_a_newer_build_replays(path):
    history = json.loads(path.read_text())
    changed = newer(history)
    assert changed != history
    workflow_id = history["events"][0]["workflowExecutionStartedEventAttributes"]["workflowId"]
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER)

    await replayer.replay_workflow(WorkflowHistory.from_json(workflow_id, json.dumps(changed)))


def test_manifests_of_people_stay_strict():
    assert ("field_of_a_newer_build",) in unknown_fields(lambda: ModelManifest.model_validate(shape(ModelManifest)))


def test_a_document_that_was_read_before_gives_the_same_value():
    document = ReplicaCount(model="m", part="p", region="r", hardware="cpu", count=3).model_dump_json()
    assert decode_frozen(ReplicaCount, document) is decode_frozen(ReplicaCount, str(document.encode(), "utf-8"))
    assert decode_frozen(ReplicaCount, document.replace("3", "4")).count == 4


def test_a_long_document_is_not_kept():
    document = ReplicaCount(model="m", part="p", region="r", hardware="cpu", count=3).model_dump_json()
    long = document + " " * LONGEST_REMEMBERED
    assert decode_frozen(ReplicaCount, long) == decode_frozen(ReplicaCount, long)
    assert decode_frozen(ReplicaCount, long) is not decode_frozen(ReplicaCount, long)
