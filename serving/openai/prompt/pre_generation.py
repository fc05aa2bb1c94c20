"""Execution of the nodes before the generator, and construction of the prompt from their outputs.

All calls use the one generation chosen for the request: torch parts are called on hosts, embedding parts on their
engines. Used by serving.openai.routes.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import REQUEST
from ipnext.model.settings.prompt import PROMPT
from serving.graph import GraphPlan, Tensors, run_graph
from serving.openai.engines.registry import EngineRegistry
from serving.openai.prompt.embeddings import embed
from serving.openai.prompt.prompt_builder import CHAT_PATH, COMPLETIONS_PATH, compose_prompt, extract_prompt, with_text
from serving.openai.prompt.request_inputs import INPUTS, read_inputs
from serving.protocol.tensors import Tensor
from serving.routing.host_call import CallState, RetryOnOtherHost
from serving.routing.host_client import HostClient
from serving.routing.metrics import RouterMetrics
from serving.routing.retries import run_with_retry
from serving.routing.sync_policy import of_snapshot
from serving.routing.table import GenerationRoute

Fresh = Callable[[GenerationRoute], GenerationRoute]
"""Returns the same generation with the current hosts and engines."""


@dataclass(frozen=True, slots=True)
class GeneratorRequest:
    """The request to the generator."""

    body: Mapping[str, Any]
    used: Mapping[str, int]
    """Part -> snapshot that answered for it."""


@dataclass(slots=True)
class _Steps:
    """The calls of one request."""

    route: GenerationRoute
    attempt: CallState


class PreGeneration:
    """Runs the steps before the generator, for all generations that have any."""

    def __init__(
        self, hosts: HostClient, engines: EngineRegistry, metrics: RouterMetrics, *, fresh: Fresh, current: Fresh
    ) -> None:
        self._hosts = hosts
        self._engines = engines
        self._metrics = metrics
        self._fresh = fresh
        self._current = current

    async def run(self, route: GenerationRoute, path: str, body: Mapping[str, Any], seconds: float) -> GeneratorRequest:
        """Return the body for the generator, without `inputs`.

        `seconds` are left; the caller enforces them by cancelling. InvalidInput if path or body do not fit the model,
        Unavailable if hosts or engines do not answer.
        """
        plan = _plan_of(route, path)
        began = time.monotonic()
        request: dict[str, Tensor] = {PROMPT: _text(extract_prompt(path, body)), **read_inputs(body, route.inputs)}
        steps = _Steps(route, CallState(deadline=began + seconds))
        given = await self._run_nodes(steps, plan, request)
        self._metrics.note_before(route.model, route.generation, time.monotonic() - began)
        if route.is_substituted(steps.attempt.used):
            self._metrics.note_substituted(route.model, route.generation)
        text = _compose_prompt(route, request, given)
        plain = {name: value for name, value in body.items() if name != INPUTS}
        return GeneratorRequest(with_text(path, plain, text), steps.attempt.used)

    async def _run_nodes(self, steps: _Steps, plan: GraphPlan, request: Tensors) -> Tensors:
        """Run the nodes.

        Under `locked` only a failed call is repeated; otherwise all are, since calls of a part must share a snapshot.
        """
        if steps.route.is_locked:
            return await run_graph(plan, request, partial(self._call_part_again, steps))
        return await self._with_retry(steps, lambda: run_graph(plan, request, partial(self._call_part, steps)))

    async def _call_part_again(self, steps: _Steps, part: str, inputs: Tensors) -> Tensors:
        return await self._with_retry(steps, lambda: self._call_part(steps, part, inputs))

    def _with_retry(self, steps: _Steps, attempt: Callable[[], Awaitable[Tensors]]) -> Awaitable[Tensors]:
        def again(counts: bool) -> None:
            if counts:
                self._metrics.note_retry(steps.route.model, steps.route.generation)
            steps.route = self._fresh(steps.route)
            if not steps.route.is_locked:
                steps.attempt.used.clear()

        subject = f"generation {steps.route.generation} of {steps.route.model}"
        return run_with_retry(attempt, steps.attempt, again=again, subject=subject, whom="host or engine")

    async def _call_part(self, steps: _Steps, part: str, inputs: Tensors) -> Tensors:
        route, attempt = self._current(steps.route), steps.attempt
        tiers = route.candidates[part]
        if not any(of_snapshot(tiers, attempt.used[part]) if part in attempt.used else tiers):
            msg = f"part {part!r} has none that is ready"
            raise RetryOnOtherHost(msg)
        if part in route.engines:
            return await embed(self._engines, route, part, inputs, attempt)
        return await self._hosts.infer(route, part, inputs, attempt)


def _plan_of(route: GenerationRoute, path: str) -> GraphPlan:
    if path not in {CHAT_PATH, COMPLETIONS_PATH} or route.before is None:
        msg = (
            f"model {route.model} answers at {CHAT_PATH} and {COMPLETIONS_PATH} only: its graph ends in text, "
            f"got {path}"
        )
        raise InvalidInput(msg, field="path", value=path)
    return route.before


def _text(text: str) -> Tensor:
    return Tensor("BYTES", np.array([text.encode(errors="replace")], np.object_))


def _compose_prompt(route: GenerationRoute, request: Tensors, given: Tensors) -> str:
    """Build the generator's prompt."""
    last = route.plan.nodes[-1]
    taken = {name: request[s.tensor] if s.node == REQUEST else given[name] for name, s in last.inputs.items()}
    if last.prompt is None:
        msg = f"node {last.name!r} has no prompt"
        raise InvalidInput(msg, field="model")
    return compose_prompt(last.prompt, taken)
