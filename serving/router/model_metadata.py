"""The tensors of a whole model, combined from those of its parts. Serves `GET /v2/models/{model}`."""

import asyncio
from collections.abc import Mapping

from ipnext.model.registry.registry import REQUEST, Signature, TensorSpec
from serving.graph import GraphPlan
from serving.routing.host_client import HostClient
from serving.routing.table import GenerationRoute


async def model_signature(route: GenerationRoute, hosts: HostClient) -> Signature:
    """Request each part's signature from one host and follow the graph's edges to the request and the answer."""
    parts = sorted(route.plan.parts)
    signatures = await asyncio.gather(*(hosts.signature(route, part) for part in parts))
    return join_signatures(route.plan, dict(zip(parts, signatures, strict=True)))


def join_signatures(plan: GraphPlan, parts: Mapping[str, Signature]) -> Signature:
    """Return the model's inputs (those that nodes take from the request) and outputs, in the graph's order.

    An input may be given once for all rows if every node that takes it allows that.
    """
    inputs: dict[str, TensorSpec] = {}
    by_row: set[str] = set()
    for node in plan.nodes:
        specs = {spec.name: spec for spec in parts[node.part].inputs}
        for name, source in node.inputs.items():
            if source.node == REQUEST and name in specs:
                inputs.setdefault(source.tensor, specs[name].model_copy(update={"name": source.tensor}))
                if name not in parts[node.part].request_inputs:
                    by_row.add(source.tensor)
    part_of = {node.name: node.part for node in plan.nodes}
    outputs = [
        spec.model_copy(update={"name": name})
        for name, source in plan.outputs.items()
        for spec in parts[part_of[source.node]].outputs
        if spec.name == source.tensor
    ]
    once = tuple(name for name in inputs if name not in by_row)
    return Signature(inputs=tuple(inputs.values()), outputs=tuple(outputs), request_inputs=once)
