"""Branches of a pipeline: each hardware kind ends with what the steps for it led to, and prefixes are shared. Pure."""

from types import SimpleNamespace

import pytest

from activities.optimization.branches import derive_branches, read_ends
from ipnext.model.manifest.manifest import ModelSpec

KINDS = ("a", "b", "c")


def quantize(*hardware, part="ranker", embeddings="int8"):
    named = {"hardware": list(hardware)} if hardware else {}
    return {"quantize": {"part": part, "embeddings": embeddings, **named}}


def spec(*steps, parts=("ranker",)):
    hardware = [{"kind": kind, "units": 1, "qps": 1} for kind in KINDS]
    nodes = [{"name": part, "part": part, "inputs": {}} for part in parts]
    return ModelSpec.model_validate(
        {
            "parts": [{"name": name, "hardware": hardware} for name in parts],
            "graph": {"nodes": nodes, "outputs": {"score": f"{parts[0]}.score"}},
            "demand": [{"region": "eu", "qps": 1}],
            "optimization": list(steps),
        }
    )


@pytest.fixture
def run():
    """Run the steps; those of `kept` keep what they were given. Snapshot 1 is published; derived ones are counted."""

    def call(given, kept=()):
        calls = []

        def derive(index, source, hardware):
            calls.append((index, source.number, tuple(hardware)))
            return None if index in kept else SimpleNamespace(number=len(calls) + 1, derived_from=1)

        ends = derive_branches(given, lambda _: SimpleNamespace(number=1, derived_from=None), derive)
        return calls, read_ends(given, ends)

    return call


def test_steps_for_all_kinds_are_one_branch(run):
    calls, derived = run(spec(quantize(), quantize(embeddings="int4")))
    assert calls == [(0, 1, ()), (1, 2, ())]
    assert (derived.parts, derived.by_hardware) == ({"ranker": 3}, {})


def test_a_step_for_one_kind_leaves_the_published_snapshot_to_the_others(run):
    calls, derived = run(spec(quantize("a")))
    assert calls == [(0, 1, ("a",))]
    assert (derived.parts, derived.by_hardware) == ({}, {"a": {"ranker": 2}})


def test_a_shared_prefix_is_derived_once_and_later_steps_follow_each_branch(run):
    calls, derived = run(spec(quantize(), quantize("a", "b"), quantize(embeddings="int4")))
    assert calls == [(0, 1, ()), (1, 2, ("a", "b")), (2, 2, ("c",)), (2, 3, ("a", "b"))]
    assert (derived.parts, derived.by_hardware) == ({"ranker": 4}, {"a": {"ranker": 5}, "b": {"ranker": 5}})


def test_each_kind_may_have_a_step_of_its_own(run):
    calls, derived = run(spec(quantize("a"), quantize("b", embeddings="int4")))
    assert calls == [(0, 1, ("a",)), (1, 1, ("b",))]
    assert (derived.parts, derived.by_hardware) == ({}, {"a": {"ranker": 2}, "b": {"ranker": 3}})


def test_a_step_that_keeps_what_it_was_given_ends_no_branch(run):
    calls, derived = run(spec(quantize("a"), quantize("a", embeddings="int4")), kept={0})
    assert calls == [(0, 1, ("a",)), (1, 1, ("a",))]
    assert derived.by_hardware == {"a": {"ranker": 3}}
    assert run(spec(quantize("a")), kept={0})[1].by_hardware == {}


def test_no_step_runs_for_kinds_that_may_come_later_alone(run):
    calls, derived = run(spec(quantize(*KINDS), quantize(embeddings="int4")))
    assert calls == [(0, 1, KINDS), (1, 2, KINDS)]
    assert (derived.parts, derived.by_hardware) == ({}, {kind: {"ranker": 3} for kind in KINDS})


def test_parts_have_branches_of_their_own(run):
    steps = (quantize("a", part="x"), quantize(part="y"))
    calls, derived = run(spec(*steps, parts=("x", "y")))
    assert calls == [(0, 1, ("a",)), (1, 1, ())]
    assert (derived.parts, derived.by_hardware) == ({"y": 3}, {"a": {"x": 2}})


def test_without_steps_nothing_is_derived(run):
    assert run(spec()) == ([], None)
