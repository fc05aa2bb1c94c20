"""A part graph runs each node once its inputs are there, at once where it can, and stops as a whole."""

import asyncio

import numpy as np
import pytest

from ipnext.errors import InvalidInput, IPnextError
from ipnext.model.registry.registry import GraphNode, PartGraph
from serving.graph import plan_graph, run_graph
from serving.protocol.tensors import Tensor
from tests.waiting import PATIENCE_SECONDS


def node(name, part=None, **inputs):
    return GraphNode(name=name, part=part or name, inputs=inputs)


def number(value):
    return Tensor("INT64", np.array([value]))


DIAMOND = PartGraph(
    nodes=(
        node("join", left="a.out", right="b.out"),
        node("a", x="request.x"),
        node("b", x="request.x", y="request.y"),
    ),
    outputs={"sum": "join.out", "a": "a.out"},
)
REQUEST = {"x": number(3), "y": number(4)}


async def add(part, inputs):
    await asyncio.sleep(0)
    return {"out": Tensor("INT64", sum(tensor.data for tensor in inputs.values()))}


async def test_outputs_follow_the_edges():
    outputs = await run_graph(plan_graph(DIAMOND), REQUEST, add)
    assert {name: tensor.data.tolist() for name, tensor in outputs.items()} == {"sum": [10], "a": [3]}


def test_a_plan_orders_nodes_after_those_they_need_and_knows_the_requests_tensors():
    plan = plan_graph(DIAMOND)
    assert [planned.name for planned in plan.nodes] == ["a", "b", "join"]
    assert plan.request_tensors == ("x", "y")
    assert plan.parts == {"a", "b", "join"}


async def test_independent_nodes_run_at_once():
    both = asyncio.Barrier(2)

    async def call(part, inputs):
        if part != "join":
            await asyncio.wait_for(both.wait(), PATIENCE_SECONDS)
        return await add(part, inputs)

    await run_graph(plan_graph(DIAMOND), REQUEST, call)


async def test_a_part_may_be_used_by_two_nodes():
    graph = PartGraph(
        nodes=(node("one", "p", x="request.x"), node("two", "p", x="one.out", y="request.y")),
        outputs={"out": "two.out"},
    )
    outputs = await run_graph(plan_graph(graph), REQUEST, add)
    assert outputs["out"].data.tolist() == [7]


async def test_a_failing_node_cancels_the_others_and_its_error_comes_out():
    cancelled = asyncio.Event()

    async def call(part, inputs):
        if part == "a":
            await asyncio.sleep(0)
            raise IPnextError("a broke")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(IPnextError, match="a broke"):
        await run_graph(plan_graph(DIAMOND), REQUEST, call)
    assert cancelled.is_set()


async def test_cancelling_the_request_cancels_its_calls():
    started, cancelled = asyncio.Event(), []

    async def call(part, inputs):
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(part)
            raise

    work = asyncio.create_task(run_graph(plan_graph(DIAMOND), REQUEST, call))
    await started.wait()
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert sorted(cancelled) == ["a", "b"]


async def test_a_part_that_lacks_a_promised_output_is_an_error_of_the_server():
    async def call(part, inputs):
        return {"other": number(0)}

    with pytest.raises(IPnextError, match=r"node 'a' gave no tensor 'out'; it gave other") as failure:
        await run_graph(plan_graph(DIAMOND), REQUEST, call)
    assert failure.value.http_status == 500


@pytest.mark.parametrize(
    ("request_tensors", "words"),
    [({"x": number(1)}, "'y' is missing; the inputs are x, y"), ({**REQUEST, "z": number(1)}, "'z' does not exist")],
)
def test_a_request_with_wrong_tensors_is_refused(request_tensors, words):
    with pytest.raises(InvalidInput, match=words):
        plan_graph(DIAMOND).check_request(request_tensors)
