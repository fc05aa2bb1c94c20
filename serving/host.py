"""The host process: holds snapshots of parts and answers inference requests for their generations.

Started by a region's agent: `python -m serving.host --port P --region R --id ID --artifacts URI --cache DIR`.
"""

import argparse
import asyncio
import os
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from ipnext.artifacts.opening import open_store
from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.deployment import HostHolds, HostState
from ipnext.names import GENERATION_HEADER, REGION_HEADER, SNAPSHOTS_HEADER
from serving.asgi import (
    Application,
    Request,
    Response,
    error_response,
    json_response,
    not_found,
    parse_model,
    seconds_left,
)
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
DRAIN_SECONDS: Final = 6.0
"""How long a drain waits for running requests before the process ends all the same."""


class Host:
    """The routes of a host over its held snapshots."""

    def __init__(self, held: HeldSnapshots[LoadedPart], loader: Loader, queue: InferenceQueue, *, region: str) -> None:
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
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._busy and time.monotonic() < deadline:  # noqa: ASYNC110  # two counters, asked once at the end
            await asyncio.sleep(0.01)
        if self._busy:
            structlog.get_logger().warning("drain ended with requests running", in_flight=self._in_flight)

    @property
    def _busy(self) -> bool:
        return bool(self._in_flight or self._queue.pending)

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

    async def _infer_leased(self, request: Request, model: str, lease: Lease[LoadedPart], seconds: float) -> Response:
        """Decode, run and encode. The lease is given back once the inference thread is done with the part."""
        release = partial(self._release, lease)
        try:
            wanted = decode_request(await request.body(), parse_header_length(request.header(HEADER_LENGTH)))
            check_inputs(wanted.inputs, lease.value.signature)
            wanted.check_outputs([spec.name for spec in lease.value.signature.outputs])
            work = self._queue.submit(partial(_answer, lease.value, wanted, model), on_end=release)
        except BaseException:
            release()
            raise
        return await request.wait(work, seconds=seconds)

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


def _generation(request: Request) -> int:
    text = request.header(GENERATION_HEADER)
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 18):
        msg = f"{GENERATION_HEADER}: must be the number of a generation, got {text!r}"
        raise InvalidInput(msg, field=GENERATION_HEADER, value=text)
    return int(text)


def _answer(part: LoadedPart, wanted: InferRequest, model: str) -> Response:
    """Run in an inference thread: the forward pass, and its outputs encoded as the request wants them."""
    arrays = part.infer({name: tensor.data for name, tensor in wanted.inputs.items()})
    outputs = wanted.select({spec.name: Tensor(spec.datatype, arrays[spec.name]) for spec in part.signature.outputs})
    response = InferResponse(model_name=model, outputs=outputs, id=wanted.id)
    encoded = encode_response(response, binary=wanted.binary_names(outputs))
    return Response(200, encoded.body, encoded.headers)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.host", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--region", required=True)
    parser.add_argument("--id", required=True, help="name of this replica")
    parser.add_argument("--artifacts", required=True, help="uri of the artifact store: file:///... or s3://...")
    parser.add_argument("--cache", type=Path, required=True, help="directory that snapshots are fetched into")
    parser.add_argument("--s3-endpoint-url", default=None)
    parser.add_argument("--threads", type=int, default=1, help="requests that run at once (default 1)")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait (default 64)")
    return parser.parse_args(arguments)


async def _main(arguments: argparse.Namespace, listener: socket.socket) -> None:
    held: HeldSnapshots[LoadedPart] = HeldSnapshots()
    store = partial(open_store, arguments.artifacts, endpoint_url=arguments.s3_endpoint_url)
    loader = Loader(held, store, arguments.cache, find_engine)
    queue = InferenceQueue(threads=arguments.threads, waiting=arguments.queue)
    host = Host(held, loader, queue, region=arguments.region)
    structlog.get_logger().info("host listens", id=arguments.id, port=listener.getsockname()[1])
    await serve(Application(host.handle), listener, before_exit=host.drained)
    loader.close()
    queue.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a host until SIGTERM."""
    parsed = _arguments(arguments)
    log_as_json()
    listener = listen(parsed.port)
    run(partial(_main, parsed, listener))
    os._exit(0)  # a forward pass or a download that hangs in its thread must not keep the process


if __name__ == "__main__":
    main()
