"""Requests that are mirrored to a shadow, a generation that answers no client, once their own answers have been sent.

A mirrored request calls hosts over connections of its own, and its failures eject no host for clients' requests. It is
tried once. Nothing here is counted in a generation's traffic; see `serving.metrics.shadow_counts`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ipnext.errors import AnswerTooLarge, DeadlineExceeded, HostLost, IPnextError, Unavailable
from ipnext.model.gate.shadow import DropReason, ShadowComparison
from serving.graph import Tensors, run_graph
from serving.http.limits import AnswerBudget
from serving.http.messages import Request, Response
from serving.metrics.answer_differences import compare_answers
from serving.metrics.shadow_counts import ShadowCounts, ShadowFamilies
from serving.protocol.v2 import HEADER_LENGTH, Body, decode_request, decode_response, parse_header_length
from serving.router.shadow_choice import chooses
from serving.routing.host_call import CallState, HostEnded, RetryOnOtherHost
from serving.routing.host_client import HostClient
from serving.routing.table import GenerationRoute, Routes, ShadowRoute

MAX_REQUEST_BYTES: Final = 2**20
"""Largest body of a mirrored request."""
MAX_ANSWER_BYTES: Final = 2**18
"""Largest body of either answer. While the router decodes and compares them, some milliseconds, no client is
answered."""
MAX_JSON_BYTES: Final = 64 * 2**10
"""Most JSON in any of these, for the same reason."""
QUEUE_PER_SLOT: Final = 4
"""Requests that may wait for each one that may be under way."""
HELD_BYTES: Final = 64 * 2**20
"""Bodies of all mirrored requests of a router, and of the clients' answers to them."""


def mirror_answers() -> AnswerBudget:
    """Return the budget for a mirror's client: that of shadows' answers."""
    return AnswerBudget(MAX_ANSWER_BYTES, HELD_BYTES)


@dataclass(frozen=True, slots=True)
class MirroredBody:
    """A V2 body, and the length of its JSON if binary data follows it."""

    content: Body
    header_length: int | None

    def fits(self, most_bytes: int) -> bool:
        """Return whether it has at most so many bytes, and no more JSON than is mirrored."""
        json_bytes = len(self.content) if self.header_length is None else self.header_length
        return len(self.content) <= most_bytes and json_bytes <= MAX_JSON_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class MirroredRequest:
    """A request, its client's answer, and the seconds that this took."""

    body: MirroredBody
    answer: MirroredBody
    seconds: float

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory."""
        return len(self.body.content) + len(self.answer.content)


class ShadowMirror(Collector):
    """Mirrors requests of the models that have a shadow, and compares the answers. Used from the router's event loop.

    `hosts_walk`: as of the router. `held_bytes` limits the memory of bodies.
    """

    def __init__(
        self,
        hosts: HostClient,
        *,
        region: str,
        hosts_walk: bool = True,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        self._hosts = hosts
        self._region = region
        self._hosts_walk = hosts_walk
        self._held_bytes = held_bytes
        self._held = 0
        self._lanes: dict[str, _Lane] = {}

    def after_answer(
        self, model: str, request: Request, response: Response, *, seconds: float, chosen: bool
    ) -> Callable[[], None] | None:
        """Return what to call once a successful answer has been sent; None if the request is not to be mirrored.

        Both bodies are uncompressed. `chosen`: a gateway chose the generation; requests whose clients did are not
        mirrored. The call decides on the share, so that the client does not wait for it.
        """
        if not chosen or model not in self._lanes:
            return None
        return partial(self._offer, model, request, response, seconds)

    def follow(self, routes: Routes) -> None:
        """Follow another table: comparisons of shadows that have changed or ended are dropped, with their requests."""
        shadows = routes.shadows
        for model in tuple(self._lanes):
            if model not in shadows or shadows[model].identity != self._lanes[model].shadow.identity:
                self._held -= self._lanes.pop(model).close()
        for model, shadow in shadows.items():
            self._lane(model, shadow).shadow = shadow
        self._hosts.forget(frozenset(url for shadow in shadows.values() for url in shadow.route.urls))

    @property
    def comparisons(self) -> tuple[ShadowComparison, ...]:
        """The comparison of each shadow."""
        return tuple(lane.counts.comparison for lane in self._lanes.values())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by prometheus_client."""
        families = ShadowFamilies()
        for lane in self._lanes.values():
            lane.counts.add_to(families, self._region)
        yield from families

    def close(self) -> None:
        """Drop all mirrored requests, and close the connections to hosts."""
        for lane in self._lanes.values():
            lane.close()
        self._hosts.close()

    def _lane(self, model: str, shadow: ShadowRoute) -> "_Lane":
        lane = self._lanes.get(model)
        if lane is None:
            counts = ShadowCounts(model, shadow.shadow.generation, shadow.shadow.seed)
            lane = self._lanes[model] = _Lane(shadow, counts)
        return lane

    def _offer(self, model: str, request: Request, response: Response, seconds: float) -> None:
        """Take up a request whose answer has been sent, if it is in the share and there is room."""
        lane = self._lanes.get(model)
        if lane is None:
            return
        shadow = lane.shadow.shadow
        if not chooses(request, share=shadow.share, seed=shadow.seed):
            return
        lane.counts.chosen += 1
        mirrored = MirroredRequest(
            MirroredBody(request.content, parse_header_length(request.header(HEADER_LENGTH))),
            MirroredBody(response.body, parse_header_length(response.headers.get(HEADER_LENGTH))),
            seconds,
        )
        reason = self._find_refusal(lane, mirrored)
        if reason is not None:
            lane.counts.dropped[reason] += 1
            return
        self._held += mirrored.size
        lane.waiting.append(_detach(mirrored))
        lane.counts.under_way += 1
        self._begin_next(lane)

    def _find_refusal(self, lane: "_Lane", mirrored: MirroredRequest) -> DropReason | None:
        if not (mirrored.body.fits(MAX_REQUEST_BYTES) and mirrored.answer.fits(MAX_ANSWER_BYTES)):
            return "size"
        if lane.shadow.route.missing:
            return "no_host"
        if len(lane.waiting) >= QUEUE_PER_SLOT * lane.shadow.shadow.max_in_flight:
            return "queue"
        return "memory" if self._held + mirrored.size > self._held_bytes else None

    def _begin_next(self, lane: "_Lane") -> None:
        while lane.waiting and len(lane.running) < lane.shadow.shadow.max_in_flight:
            mirrored = lane.waiting.popleft()
            task = asyncio.create_task(self._compare(lane, mirrored), name="mirrored request")
            lane.running[task] = mirrored
            task.add_done_callback(partial(self._note_end, lane))

    def _note_end(self, lane: "_Lane", task: asyncio.Task[None]) -> None:
        mirrored = lane.running.pop(task, None)
        if mirrored is None:  # of a shadow that has ended
            return
        self._held -= mirrored.size
        lane.counts.under_way -= 1
        if not task.cancelled() and (fault := task.exception()) is not None:
            lane.counts.failures[IPnextError.code] += 1
            structlog.get_logger().error("mirrored request failed", model=lane.shadow.route.model, exc_info=fault)
        self._begin_next(lane)

    async def _compare(self, lane: "_Lane", mirrored: MirroredRequest) -> None:
        route, seconds = lane.shadow.route, lane.shadow.shadow.deadline_seconds
        began = time.perf_counter()
        try:
            async with asyncio.timeout(seconds):
                outputs = await self._predict(route, mirrored.body, time.monotonic() + seconds)
        except TimeoutError:
            lane.counts.failures[DeadlineExceeded.code] += 1
            return
        except RetryOnOtherHost:
            lane.counts.failures[Unavailable.code] += 1
            return
        except HostEnded:
            lane.counts.failures[HostLost.code] += 1
            return
        except IPnextError as error:
            lane.counts.failures[error.code] += 1
            return
        shadow_seconds = time.perf_counter() - began
        try:
            real = decode_response(mirrored.answer.content, mirrored.answer.header_length).outputs
        except IPnextError:
            lane.counts.dropped["unreadable"] += 1
            return
        lane.counts.note_compared(
            compare_answers(real, outputs), seconds=mirrored.seconds, shadow_seconds=shadow_seconds
        )

    async def _predict(self, route: GenerationRoute, body: MirroredBody, deadline: float) -> Tensors:
        """Return the outputs of the shadow's graph, executed as for a client's request, but tried once.

        RetryOnOtherHost, HostEnded, and IPnextError as reported by hosts.
        """
        asked = CallState(deadline)
        pair = (body.content, body.header_length)
        if route.only_part is not None:
            frame = await self._hosts.relay(route, route.only_part, pair, asked)
        elif self._hosts_walk and route.executing_part is not None:
            frame = await self._hosts.walk(route, pair, asked)
        else:
            wanted = decode_request(*pair)
            route.plan.check_request(wanted.inputs)
            outputs = await run_graph(route.plan, wanted.inputs, partial(self._hosts.infer, route, attempt=asked))
            return wanted.select(outputs)
        answer = MirroredBody(frame.body.data, frame.header["header_length"])
        if not answer.fits(MAX_ANSWER_BYTES):
            msg = "the shadow's answer is larger than what is compared"
            raise AnswerTooLarge(msg)
        return decode_response(answer.content, answer.header_length).outputs


class _Lane:
    """The mirrored requests of one shadow."""

    def __init__(self, shadow: ShadowRoute, counts: ShadowCounts) -> None:
        self.shadow = shadow
        self.counts = counts
        self.waiting: deque[MirroredRequest] = deque()
        self.running: dict[asyncio.Task[None], MirroredRequest] = {}

    def close(self) -> int:
        """Drop all requests; return the bytes that they kept."""
        size = sum(one.size for one in (*self.waiting, *self.running.values()))
        running = tuple(self.running)
        self.waiting.clear()
        self.running.clear()
        for task in running:
            task.cancel()
        return size


def _detach(mirrored: MirroredRequest) -> MirroredRequest:
    """Return the same with a copy of the client's answer, whose memory counts in the budget of clients' answers."""
    answer = MirroredBody(bytes(mirrored.answer.content), mirrored.answer.header_length)
    return MirroredRequest(mirrored.body, answer, mirrored.seconds)
