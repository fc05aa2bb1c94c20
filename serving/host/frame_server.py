"""The host's side of a router connection: calls arrive as frames and answers leave as frames, in any order."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import structlog

from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.deployment.router_table import RoutedModel
from serving.graph import Tensors
from serving.host.graph_executor import GraphCall, GraphExecutor
from serving.host.part_server import About, PartServer
from serving.http.limits import OpenConnections
from serving.http.messages import parse_model
from serving.metrics.prediction_sketches import sketches_of
from serving.protocol.frames import Frame, FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.response_templates import NotFinite
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import EncodedBody
from serving.routing.host_connection import ROUTES_KNOWN
from serving.routing.table import GenerationRoute, generation_route

_NUMBERS: Final = frozenset({int, type(None)})
_LONGEST_SECONDS: Final = 3600.0
"""Cap on a call's deadline: the event loop has no timers beyond some centuries."""


class HostFrames:
    """The calls of one connection. `take_over` is an upgrade of serving.http.connection."""

    def __init__(self, parts: PartServer, executor: GraphExecutor, connections: OpenConnections | None = None) -> None:
        """Create the connection.

        `connections` are those of the process; their budget counts frame bodies until their calls end.
        """
        self._parts = parts
        self._executor = executor
        self._open = connections if connections is not None else OpenConnections()
        self._budget = self._open.budget
        self._routes: dict[int, GenerationRoute] = {}
        self._running: dict[int, asyncio.Future[None]] = {}
        self._frames = FrameProtocol(
            self._on_frame,
            self._on_lost,
            budget=self._budget,
            on_refused=lambda header, error: self._fail(header.get("id"), error),
        )

    def take_over(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Answer on this connection from now on."""
        self._open.add(self)
        self._frames.take_over(transport, rest)

    @property
    def idle(self) -> bool:
        """Whether no call is in flight, and all answers have been sent."""
        return not self._running and self._frames.is_sent

    def close(self) -> None:
        """Close the connection once the written bytes have been sent."""
        self._frames.close()

    def check_pace(self, now: float) -> None:
        """End the connection if the peer is too slow. `now` is of time.monotonic."""
        self._frames.check_pace(now, self._budget.limits)

    def _on_lost(self) -> None:
        """Cancel all running calls: no caller waits for them."""
        self._open.discard(self)
        for work in tuple(self._running.values()):
            work.cancel()

    def _on_frame(self, frame: Frame) -> None:
        header, size = frame.header, frame.body.size
        number: Any = header.get("id")
        work: asyncio.Future[None] | None = None
        try:
            work = self._begin(number, header, frame)
        except IPnextError as error:
            self._fail(number, error)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            self._fail(number, InvalidInput(f"the frame's header cannot be read: {error!r}"))
        if work is None:
            self._budget.held_bytes -= size
        else:
            self._running[number] = work
            work.add_done_callback(partial(self._note_end, number, size))

    def _begin(self, number: Any, header: Mapping[str, Any], frame: Frame) -> asyncio.Future[None] | None:
        """Begin the operation of a frame; None if it is already done."""
        if type(number) not in _NUMBERS:
            msg = f"id: must be a whole number, got {str(number)[:80]!r}"
            raise InvalidInput(msg, field="id", value=number)
        match header["op"]:
            case "infer":
                return self._infer(number, header, frame)
            case "v2":
                return self._infer_v2(number, header, frame)
            case "walk":
                return self._walk(number, header, frame)
            case "route":
                self._learn(header["route"], frame)
            case "cancel":
                work = self._running.get(number)
                if work is not None:
                    work.cancel()
            case "ping":
                self._frames.send(bytes_frame({"id": number, "status": 200}))
            case "signature":
                found = self._parts.signature(header["model"], header["part"], header["generation"])
                answer = {"id": number, "status": 200, "signature": found.model_dump(mode="json")}
                self._frames.send(bytes_frame(answer))
            case other:
                msg = f"op: {str(other)[:80]!r} is not one of infer, v2, walk, route, cancel, ping, signature"
                raise InvalidInput(msg, field="op", value=other)
        return None

    def _infer(self, number: int, header: Mapping[str, Any], frame: Frame) -> asyncio.Future[None] | None:
        tensors = frame.tensors()
        seconds = _seconds(header)
        lease = self._parts.lease(header["model"], header["part"], header["generation"])
        finish = partial(self._answer, number, lease.snapshot)
        return self._parts.infer(lease, tensors, seconds=seconds, finish=finish)

    def _infer_v2(self, number: int, header: Mapping[str, Any], frame: Frame) -> asyncio.Future[None] | None:
        chosen = header.get("chosen", header["generation"])
        about = About(header["model"], header["part"], chosen, tuple(header["outputs"]))
        seconds, header_length = _seconds(header), header["header_length"]
        lease = self._parts.lease(about.model, about.part, header["generation"])
        return self._parts.infer_v2(
            lease,
            frame.body.data,
            header_length,
            about=about,
            seconds=seconds,
            finish=partial(self._answer_v2, number, lease.snapshot, bool(header.get("sketch"))),
        )

    def _learn(self, number: int, frame: Frame) -> None:
        """Store a route under the number that later graph calls name it by."""
        model = parse_model(RoutedModel, frame.body.tobytes())
        if not model.served:
            msg = f"served: a route has one generation, got none of {model.model}"
            raise InvalidInput(msg, field="served")
        route = generation_route(model, model.served[0])
        self._routes[number] = route
        self._executor.learn(route)
        if len(self._routes) > ROUTES_KNOWN:
            del self._routes[next(iter(self._routes))]

    def _walk(self, number: int, header: Mapping[str, Any], frame: Frame) -> asyncio.Future[None]:
        route = self._routes.get(header["route"])
        if route is None:
            msg = f"route {header['route']} is not known here; tell it first"
            raise Unavailable(msg)
        walk = GraphCall(route, header["part"], mirrored=bool(header.get("mirrored")))
        work = self._executor.answer(
            walk,
            (frame.body.data, header["header_length"]),
            seconds=_seconds(header),
            finish=partial(self._answer_walk, number, walk, bool(header.get("sketch"))),
        )
        return asyncio.ensure_future(work)

    def _answer_walk(
        self, number: int, walk: GraphCall, sketched: bool, encoded: EncodedBody, finite: bool, outputs: Tensors
    ) -> None:
        snapshots = {**walk.route.snapshots, **walk.used}
        proof = {"snapshot": snapshots.get(walk.part), "snapshots": snapshots}
        self._send_v2(number, proof, encoded, finite, outputs if sketched else {})

    def _answer(self, number: int, snapshot: int, outputs: dict[str, Tensor]) -> None:
        self._running.pop(number, None)
        self._frames.send(tensor_frame({"id": number, "status": 200, "snapshot": snapshot}, outputs))

    def _answer_v2(
        self, number: int, snapshot: int, sketched: bool, encoded: EncodedBody, finite: bool, outputs: Tensors
    ) -> None:
        self._send_v2(number, {"snapshot": snapshot}, encoded, finite, outputs if sketched else {})

    def _send_v2(
        self, number: int, proof: Mapping[str, Any], encoded: EncodedBody, finite: bool, sampled: Tensors
    ) -> None:
        """Send an answer to a V2 body, with sketches of the outputs in `sampled`."""
        self._running.pop(number, None)
        header = {
            "id": number,
            "status": 200,
            **proof,
            "finite": finite,
            "header_length": encoded.header_length,
        }
        if sampled:
            header["sketches"] = sketches_of(sampled)
        self._frames.send(bytes_frame(header, encoded.body))

    def _note_end(self, number: int, size: int, work: asyncio.Future[None]) -> None:
        """Clean up a call.

        A successful one has sent its answer; a failed one gets its refusal, a cancelled one nothing.
        """
        self._running.pop(number, None)
        self._budget.held_bytes -= size
        if work.cancelled() or (error := work.exception()) is None:
            return
        if not isinstance(error, IPnextError):
            structlog.get_logger().error("call failed", exc_info=error)
            error = IPnextError("internal error; the log of the host has the reason")
        self._fail(number, error)

    def _fail(self, number: Any, error: IPnextError) -> None:
        answer = {"id": number, "status": error.http_status, "code": error.code, "error": error.message}
        if isinstance(error, NotFinite):
            answer["finite"] = False
        self._frames.send(bytes_frame(answer))


def _seconds(header: Mapping[str, Any]) -> float:
    """Return the time limit of a call in seconds, at most _LONGEST_SECONDS."""
    seconds: float = header["deadline_ms"] / 1000
    return min(seconds, _LONGEST_SECONDS)
