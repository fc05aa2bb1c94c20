"""Graph execution in the host of the last node, so that outputs of the other parts travel once.

The router chooses the generation and names the hosts of each part; the executor changes neither. While the other parts
work, the host computes the share of its own pass that needs none of their outputs.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from ipnext.errors import DeadlineExceeded, GenerationNotHeld
from ipnext.model.registry.registry import REQUEST
from serving.graph import Call, Tensors, inputs_of, outputs_of, run_graph
from serving.host.part_server import Finish, PartServer
from serving.host.served_part import ServedPart, StartedPass
from serving.protocol.request_templates import RequestForms
from serving.protocol.response_templates import AnswerForm, AnswerForms
from serving.protocol.tensors import Tensor, decoded_bytes
from serving.protocol.v2 import Body, InferRequest, InferResponse, proof_parameters
from serving.routing.host_call import CallState, HostCall
from serving.routing.host_client import HostClient
from serving.routing.host_connection import ROUTES_KNOWN
from serving.routing.retries import run_with_retry
from serving.routing.table import GenerationRoute
from serving.snapshots.held_snapshots import Lease

R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class GraphCall:
    """A route and its part that this host serves."""

    route: GenerationRoute
    part: str
    mirrored: bool = False
    """Whether no client waits for it."""
    used: dict[str, int] = field(default_factory=dict)
    """Part -> the snapshot that answers for it in this attempt."""


class GraphExecutor:
    """The graph calls of one host."""

    def __init__(self, parts: PartServer, hosts: HostClient, mirrors: HostClient | None = None) -> None:
        """`mirrors` makes the calls of mirrored requests: hosts that fail these stay in use for clients' requests."""
        self._parts = parts
        self._hosts = hosts
        self._mirrors = mirrors or hosts
        self._urls: dict[tuple[str, int], frozenset[str]] = {}
        self._forms = RequestForms()
        self._answers = AnswerForms()

    def learn(self, route: GenerationRoute) -> None:
        """Register a route that a router will name. Connections to hosts of no recent route are closed."""
        self._urls.pop((route.model, route.generation), None)
        self._urls[route.model, route.generation] = route.urls
        if len(self._urls) > ROUTES_KNOWN:
            del self._urls[next(iter(self._urls))]
        urls = frozenset().union(*self._urls.values())
        for client in {self._hosts, self._mirrors}:
            client.forget(urls)

    async def answer(
        self,
        walk: GraphCall,
        body: tuple[Body, int | None],
        *,
        seconds: float,
        finish: Finish[R],
    ) -> R:
        """Execute the graph for a V2 request and return the result of `finish` on the answer.

        `body` is its bytes and the length of its JSON header, if binary data follows. Raises InvalidInput and
        DeadlineExceeded, GenerationNotHeld if this host has not loaded the route's snapshot, and Unavailable if other
        hosts do not answer.
        """
        wanted = self._forms.read(*body, room=self._parts.check_room)
        walk.route.plan.check_request(wanted.inputs)
        answer = self._answer_form(walk, wanted)
        seconds = wanted.seconds(seconds)
        try:
            with self._parts.busy(), self._parts.claim() as claim:
                if wanted.form is None:
                    claim.set(decoded_bytes(wanted.inputs.values(), beside=body[0]))
                async with asyncio.timeout(seconds):
                    asked = CallState(time.monotonic() + seconds, used=walk.used)
                    outputs = await self._with_retry(walk, wanted.inputs, asked)
        except TimeoutError as error:
            msg = f"the deadline of {seconds * 1000:.0f} ms passed"
            raise DeadlineExceeded(msg) from error
        if walk.route.differs(walk.used):
            answer = self._answer_form(walk, wanted)
        chosen = answer.select_outputs(outputs)
        return finish(*answer.encode_for(wanted.inputs, chosen), chosen)

    def _answer_form(self, walk: GraphCall, wanted: InferRequest) -> AnswerForm:
        """Return the answer form of a request, with the snapshots used so far.

        InvalidInput names an output that does not exist.
        """
        route, used = walk.route, dict(walk.used)
        about = (route, tuple(sorted(used.items()))) if route.differs(used) else route
        return self._answers.of(wanted, about, partial(self._make_form, route, used, wanted))

    def _make_form(self, route: GenerationRoute, used: Mapping[str, int], wanted: InferRequest) -> AnswerForm:
        outputs = tuple(route.plan.outputs)
        wanted.check_outputs(outputs)
        proof = proof_parameters(route.generation, {**route.snapshots, **used}, self._parts.region)
        head = InferResponse(route.model, {}, str(route.generation), wanted.id, proof)
        chosen = tuple(output.name for output in wanted.outputs) or outputs
        return AnswerForm(head, chosen, wanted.binary_names(chosen))

    def _with_retry(self, walk: GraphCall, request: Tensors, asked: CallState) -> Awaitable[Tensors]:
        """Return the outputs, all from one generation: if a host lacks it, all calls are repeated."""

        def again(counts: bool) -> None:
            if counts and not walk.mirrored:
                self._parts.tally.note_retry(walk.route.model, walk.route.generation)
            asked.used.clear()

        subject = f"generation {walk.route.generation} of {walk.route.model}"
        return run_with_retry(lambda: self._attempt(walk, request, asked), asked, again=again, subject=subject)

    async def _attempt(self, walk: GraphCall, request: Tensors, asked: CallState) -> Tensors:
        plan, deadline = walk.route.plan, asked.deadline
        *others, last = plan.nodes
        if last.part == walk.part and not any(node.needs or node.part == walk.part for node in others):
            return await self._run_parallel(walk, request, asked)
        call = partial(self._call, walk, deadline, partial(self._client(walk).infer, walk.route, attempt=asked))
        return await run_graph(plan, request, call)

    async def _call(self, walk: GraphCall, deadline: float, remote: Call, part: str, inputs: Tensors) -> Tensors:
        if part != walk.part:
            return await remote(part, inputs)
        return await self._infer_last(self._lease(walk), inputs, deadline)

    async def _run_parallel(self, walk: GraphCall, request: Tensors, asked: CallState) -> Tensors:
        """Execute a graph whose other nodes need only the request.

        They all run at the same time, then this host's part.
        """
        *others, last = walk.route.plan.nodes
        results: dict[str, Tensors] = {REQUEST: request}
        calls: dict[str, HostCall] = {}
        lease: Lease[ServedPart] | None = None
        try:
            for node in others:
                calls[node.name] = self._client(walk).begin(walk.route, node.part, inputs_of(node, results), asked)
            lease = self._lease(walk)
            begun = self._parts.begin(
                lease, {k: request[s.tensor] for k, s in last.inputs.items() if s.node == REQUEST}
            )
            for node in others:
                results[node.name] = (await calls.pop(node.name).response()).tensors()
            inputs, taken, lease = inputs_of(last, results), lease, None
            results[last.name] = await self._infer_last(taken, inputs, asked.deadline, begun)
            return outputs_of(walk.route.plan, results)
        finally:
            if lease is not None:
                self._parts.release(lease)
            for call in calls.values():
                call.give_up()

    def _client(self, walk: GraphCall) -> HostClient:
        return self._mirrors if walk.mirrored else self._hosts

    def _lease(self, walk: GraphCall) -> Lease[ServedPart]:
        route = walk.route
        lease = self._parts.lease(route.model, walk.part, route.generation)
        if (walk.part, lease.snapshot) not in route.own:
            self._parts.release(lease)
            msg = f"generation {route.generation} of {route.model}.{walk.part} is snapshot {lease.snapshot} here"
            raise GenerationNotHeld(msg)
        walk.used[walk.part] = lease.snapshot
        return lease

    async def _infer_last(
        self, lease: Lease[ServedPart], inputs: Tensors, deadline: float, begun: StartedPass | None = None
    ) -> dict[str, Tensor]:
        seconds = deadline - time.monotonic()
        outputs = self._parts.infer(lease, inputs, seconds=seconds, finish=dict, begun=begun)
        return await outputs if isinstance(outputs, asyncio.Future) else outputs
