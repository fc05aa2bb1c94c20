"""A publish refuses a program that hosts would refuse, by name and without torch."""

import json
from dataclasses import replace

import pytest

from activities.validation.activities import BUILT_IN
from activities.validation.programs import check_programs
from activities.validation.runs import run_validators
from ipnext.model.lifecycle.status import Reason

pytestmark = pytest.mark.trust


def node(target: str) -> dict:
    return {"target": target, "inputs": [], "outputs": [], "metadata": {}, "name": "evil"}


def changed(kit, *steps, value) -> bytes:
    """The program of the house with a value at a place."""
    document = json.loads(kit.PROGRAM)
    place = document["program"]["graph_module"]
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = value
    return json.dumps(document).encode()


def with_program(house, kit, content: bytes, **more):
    return house.source(kit.DENSE, kit.weights(2), more={"program.json": content}, **more)


def test_an_operator_that_is_not_listed_is_named(candidate, house, kit):
    program = changed(kit, "graph", "nodes", value=[node("torch.ops.aten.from_file.default")])
    refused, passed = check_programs(candidate(dense=with_program(house, kit, program)))
    assert passed.subject == "sparse/program.json"
    assert (refused.subject, refused.reason) == ("dense/program.json", Reason.UNSAFE_FORMAT)
    assert (
        "nodes[0] (node 'evil').target: the operator 'torch.ops.aten.from_file.default' is not allowed"
        in refused.message
    )


@pytest.mark.parametrize(
    ("steps", "value", "words"),
    [
        (("module_call_graph",), [{"fqn": "", "signature": None}], "module_call_graph: must be []"),
        (("more",), 1, "the field 'more' is unknown"),
        (("graph", "custom_obj_values"), {"a": {}}, "custom_obj_values: must be {}"),
        (("graph", "sym_int_values"), {"a": {"as_expr": {"expr_str": "f()"}}}, "the expression 'f()' is not allowed"),
        (("signature", "output_specs"), [{"buffer_mutation": {}}], "changes a buffer or an input"),
    ],
)
def test_what_the_exporter_does_not_write_is_refused(candidate, house, kit, steps, value, words):
    found = [
        r
        for r in check_programs(candidate(dense=with_program(house, kit, changed(kit, *steps, value=value))))
        if not r.passed
    ]
    assert [(result.reason, words in result.message) for result in found] == [(Reason.UNSAFE_FORMAT, True)]


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"format": "other"}', b"[" * 10_000])
def test_what_is_no_program_is_refused(candidate, house, kit, content):
    found = [
        result for result in check_programs(candidate(dense=with_program(house, kit, content))) if not result.passed
    ]
    assert [result.reason for result in found] == [Reason.UNSAFE_FORMAT]


def test_programs_of_other_engines_are_their_own(candidate, house, kit):
    (found,) = check_programs(candidate(sparse=with_program(house, kit, b"{}", engine="other")))
    assert found.subject == "dense/program.json"


def test_the_check_is_part_of_every_publish(candidate, house, kit):
    program = changed(kit, "graph", "nodes", value=[node("torch.ops.aten.from_file.default")])
    found = list(run_validators(candidate(dense=with_program(house, kit, program)), BUILT_IN))
    assert [(r.check, r.reason) for r in found if not r.passed] == [("program", Reason.UNSAFE_FORMAT)]
    assert found[-1].check == "program"
    (validator,) = [each for each in BUILT_IN if each.name == "program"]
    assert validator.required


def test_a_full_snapshot_of_torch_without_a_program_is_refused(candidate):
    given = candidate()
    dense = given.snapshots["dense"]
    files = tuple(file for file in dense.manifest.files if file.path != "program.json")
    without = dense.model_copy(update={"manifest": dense.manifest.model_copy(update={"files": files})})
    results = tuple(check_programs(replace(given, snapshots={"dense": without})))
    assert [(found.passed, found.reason, found.subject) for found in results] == [
        (False, Reason.ARTIFACT_MISSING, "dense/program.json")
    ]
