"""A router's connection to a host, on the host's side: calls come as frames, answers leave as frames, in any order."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.deployment import RoutedModel
from serving.answer_forms import NotFinite
from serving.frames import Frame, FrameProtocol, bytes_frame, tensor_frame
from serving.graph import Tensors
from serving.host_connection import ROUTES_KNOWN
from serving.http import parse_model
from serving.part_server import About, PartServer
from serving.predictions import sketches_of
from serving.protocol import Encoded
from serving.router_table import GenerationRoute, generation_route
from serving.tensors import Tensor
from serving.walking import Walk, Walker


class HostFrames:
    """The calls of one connection. `take_over` is an upgrade of serving.http_server."""

    def __init__(self, parts: PartServer, walker: Walker) -> None:
        self._parts = parts
        self._walker = walker
        self._routes: dict[int, GenerationRoute] = {}
        self._running: dict[int, asyncio.Future[None]] = {}
        self._frames = FrameProtocol(self._on_frame, self._on_lost)

    def take_over(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Answer on this connection from now on."""
        self._frames.take_over(transport, rest)

    def _on_lost(self) -> None:
        """Nobody waits for what runs."""
        for work in tuple(self._running.values()):
            work.cancel()

    def _on_frame(self, frame: Frame) -> None:
        header = frame.header
        number = header.get("id")
        try:
            self._begin(number, header, frame)
        except IPnextError as error:
            self._fail(number, error)
        except (KeyError, TypeError, ValueError) as error:
            self._fail(number, InvalidInput(f"the frame's header cannot be read: {error!r}"))

    def _begin(self, number: Any, header: Mapping[str, Any], frame: Frame) -> None:
        match header["op"]:
            case "infer":
                self._infer(number, header, frame)
            case "v2":
                self._infer_v2(number, header, frame)
            case "walk":
                self._walk(number, header, frame)
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
                msg = f"op: {other!r} is not one of infer, v2, walk, route, cancel, ping, signature"
                raise InvalidInput(msg, field="op", value=other)

    def _infer(self, number: int, header: Mapping[str, Any], frame: Frame) -> None:
        tensors = frame.tensors()
        seconds = header["deadline_ms"] / 1000
        lease = self._parts.lease(header["model"], header["part"], header["generation"])
        finish = partial(self._answer, number, lease.snapshot)
        work = self._parts.infer(lease, tensors, seconds=seconds, finish=finish)
        self._watch(number, work)

    def _infer_v2(self, number: int, header: Mapping[str, Any], frame: Frame) -> None:
        chosen = header.get("chosen", header["generation"])
        about = About(header["model"], header["part"], chosen, tuple(header["outputs"]))
        seconds, header_length = header["deadline_ms"] / 1000, header["header_length"]
        lease = self._parts.lease(about.model, about.part, header["generation"])
        work = self._parts.infer_v2(
            lease,
            frame.body.data,
            header_length,
            about=about,
            seconds=seconds,
            finish=partial(self._answer_v2, number, lease.snapshot, bool(header.get("sketch"))),
        )
        self._watch(number, work)

    def _learn(self, number: int, frame: Frame) -> None:
        """A route that walks to come will name by its number."""
        model = parse_model(RoutedModel, frame.body.tobytes())
        route = generation_route(model, model.served[0])
        self._routes[number] = route
        self._walker.learn(route)
        if len(self._routes) > ROUTES_KNOWN:
            del self._routes[next(iter(self._routes))]

    def _walk(self, number: int, header: Mapping[str, Any], frame: Frame) -> None:
        route = self._routes.get(header["route"])
        if route is None:
            msg = f"route {header['route']} is not known here; tell it first"
            raise Unavailable(msg)
        walk = Walk(route, header["part"])
        work = self._walker.answer(
            walk,
            (frame.body.data, header["header_length"]),
            seconds=header["deadline_ms"] / 1000,
            finish=partial(self._answer_walk, number, walk, bool(header.get("sketch"))),
        )
        self._watch(number, asyncio.ensure_future(work))

    def _answer_walk(
        self, number: int, walk: Walk, sketched: bool, encoded: Encoded, finite: bool, outputs: Tensors
    ) -> None:
        snapshots = walk.route.snapshots
        proof = {"snapshot": snapshots.get(walk.part), "snapshots": dict(snapshots)}
        self._send_v2(number, proof, encoded, finite, outputs if sketched else {})

    def _answer(self, number: int, snapshot: int, outputs: dict[str, Tensor]) -> None:
        self._running.pop(number, None)
        self._frames.send(tensor_frame({"id": number, "status": 200, "snapshot": snapshot}, outputs))

    def _answer_v2(
        self, number: int, snapshot: int, sketched: bool, encoded: Encoded, finite: bool, outputs: Tensors
    ) -> None:
        self._send_v2(number, {"snapshot": snapshot}, encoded, finite, outputs if sketched else {})

    def _send_v2(self, number: int, proof: Mapping[str, Any], encoded: Encoded, finite: bool, sampled: Tensors) -> None:
        """An answer to a V2 body, with the sketches of the outputs that are `sampled`."""
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

    def _watch(self, number: int, work: asyncio.Future[None] | None) -> None:
        """Nothing is left to do where the answer has left at once."""
        if work is None:
            return
        self._running[number] = work
        work.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, work: asyncio.Future[None]) -> None:
        """An answer has left already; a call that failed gets its refusal, a cancelled one nothing."""
        self._running.pop(number, None)
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
