"""The host process: holds snapshots of parts and answers inference requests for their generations.

Started by a region's agent: `python -m serving.host --port P --region R --id ID --artifacts URI --cache DIR`.
"""

import argparse
import asyncio
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.deployment import HostHolds, HostState
from ipnext.model.registry import Signature
from ipnext.names import GENERATION_HEADER, REGION_HEADER, SNAPSHOTS_HEADER
from serving.asgi import Application, Request, Response, error_response, json_response, not_found, parse_model, seconds_left
from serving.engines.base import LoadedPart, find_engine
from serving.generations import HeldSnapshots, Lease
from serving.inference import InferenceQueue
from serving.loading import Loader
from serving.protocol import (
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
    parse_header_length,
)
from serving.server import listen, log_as_json, run, serve
from serving.signature import check_inputs
from serving.tensors import Tensor

DEFAULT_DEADLINE_SECONDS: Final = 10.0
DRAIN_SECONDS: Final = 7.0
"""How long a drain waits for running requests before the process ends all the same."""


class Host:
    """The routes of a host over its held snapshots."""

    def __init__(
        self, held: HeldSnapshots[LoadedPart], loader: Loader, queue: InferenceQueue, *, region: str
    ) -> None:
        self._held = held
        self._loader = loader
        self._queue = queue
        self._region = region
        self._in_flight = 0
        self._draining = False

    async def handle(self, request: Request) -> Response:
        """Route one request."""
        steps = request.path.strip("/").split("/")
        match request.method, steps:
            case "POST", ["parts", model, part, "infer"]:
                return await self._infer(request, model, part)
            case "GET", ["parts", model, part]:
                return self._signature(request, model, part)
            case "PUT", ["control", "holds"]:
                return await self._hold(request)
            case "GET", ["control", "state"]:
                return json_response(self.state)
            case "POST", ["control", "drain"]:
                self.drain()
                return json_response(self.state)
            case "GET", ["healthz"]:
                return json_response({"live": True})
        raise not_found(request)

    @property
    def state(self) -> HostState:
        """What `GET /control/state` answers."""
        held = self._held
        return HostState(
            ready=held.ready,
            loading=held.loading,
            failures=held.failures,
            in_flight=self._in_flight,
            draining=self._draining,
        )

    def drain(self) -> None:
        """Take no new request; running ones finish."""
        self._draining = True

    async def drained(self) -> None:
        """Drain, and return once nothing runs or the drain's time is over."""
        self.drain()
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._in_flight or self._queue.pending:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            structlog.get_logger().warning("drain ended with requests running", in_flight=self._in_flight)

    async def _hold(self, request: Request) -> Response:
        self._loader.hold(parse_model(HostHolds, await request.body()).holds)
        return json_response(self.state, 202)

    def _signature(self, request: Request, model: str, part: str) -> Response:
        lease = self._held.lease(model, part, _generation(request))
        try:
            return json_response(lease.value.signature)
        finally:
            self._release(lease)

    async def _infer(self, request: Request, model: str, part: str) -> Response:
        if self._draining:
            msg = "this host drains; ask another"
            raise Unavailable(msg)
        self._in_flight += 1
        try:
            seconds = seconds_left(request, default=DEFAULT_DEADLINE_SECONDS)
            lease = self._held.lease(model, part, _generation(request))
            proof = self._proof(request, part, lease)
            try:
                response = await self._infer_leased(request, model, lease, seconds)
            except IPnextError as error:
                response = error_response(error)
            return Response(response.status, response.body, {**response.headers, **proof})
        finally:
            self._in_flight -= 1

    async def _infer_leased(
        self, request: Request, model: str, lease: Lease[LoadedPart], seconds: float
    ) -> Response:
        """Decode, run and encode; the lease is given back when the inference thread is done with the part."""
        started = False
        try:
            wanted = decode_request(await request.body(), parse_header_length(request.header(HEADER_LENGTH)))
            check_inputs(wanted.inputs, lease.value.signature)
            wanted.select(dict.fromkeys((spec.name for spec in lease.value.signature.outputs), _NOTHING))
            call = partial(_run, lease.value, wanted, model)
            started = True
            work = asyncio.create_task(
                self._queue.run(call, seconds=seconds, on_end=partial(self._release, lease))
            )
            return await request.unless_gone(work)
        finally:
            if not started:
                self._release(lease)

    def _release(self, lease: Lease[LoadedPart]) -> None:
        unused = self._held.release(lease)
        if unused is not None:
            self._loader.dispose(unused)

    def _proof(self, request: Request, part: str, lease: Lease[LoadedPart]) -> Mapping[str, str]:
        return {
            GENERATION_HEADER: str(_generation(request)),
            SNAPSHOTS_HEADER: f"{part}={lease.snapshot}",
            REGION_HEADER: self._region,
        }
