"""Where the microseconds of a request to a host go.

Each layer with all below it, from the forward pass to the whole.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import uvloop

from benchmarks.environments import ROOT
from benchmarks.serving.bodies import V2_BINARY, V2_JSON, Form
from benchmarks.serving.http_wire import LOOPBACK, Connection, answers
from benchmarks.serving.reference import EAGER, REQUESTS, Asked, Reference
from benchmarks.serving.report import Figures, Row
from benchmarks.serving.rows.own import HOST_PATH, PINNED, WHOLE
from benchmarks.serving.servers.own import GENERATION, MODEL, REGION, OwnServers
from benchmarks.serving.servers.process import ServerProcess
from benchmarks.serving.timing import Contender, LoopContender, measure
from ipnext.infra.process.ports import free_port
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import SnapshotManifest
from serving.engines.base import LoadedPart
from serving.engines.torch.engine import TorchEngine
from serving.host.batching import InferenceQueue
from serving.host.part_server import About, PartServer
from serving.host.served_part import BatchLimits, ServedPart
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import (
    HEADER_LENGTH,
    EncodedBody,
    InferResponse,
    decode_request,
    encode_response,
    parse_header_length,
)
from serving.snapshots.held_snapshots import HeldSnapshots

ENGINE = "engine, in process"
CODEC = "+ V2 codec"
QUEUE = "+ lease, checks, queue"
BARE = "eager forward, asked by one byte over a socket"
HTTP = "HTTP, loopback and client alone, bodies alike"
HOST = "all: a host asked over HTTP"


def layer_rows(reference: Reference, folder: Path, batches: Sequence[int], seconds: float) -> Iterator[Row]:
    """Every layer at every batch size, in JSON and in binary, in turns with the eager forward."""
    manifest = reference.export(folder / WHOLE)
    part = TorchEngine().load(folder / WHOLE, manifest, {})
    part.warm_up()
    with OwnServers(folder) as own, ExitStack() as stack:
        host = own.host("host", {WHOLE: folder / WHOLE}).server
        for batch in batches:
            bare = _bare(reference, batch, folder, stack)
            for form in (V2_BINARY, V2_JSON):
                layers = [bare, *_in_process(part, manifest, reference, batch, form, stack)]
                layers.append(_http_alone(reference, batch, form, folder, stack))
                layers.append(
                    _named(HOST, Asked(HOST, [host], HOST_PATH, form, PINNED).contender(reference, batch, stack))
                )
                samples = measure([reference.contender(batch), *layers], seconds)
                for layer in layers:
                    yield Row(
                        section="layers",
                        subject=layer.name,
                        form=form.name,
                        batch=batch,
                        own=Figures.of(samples[layer.name]),
                        baseline=Figures.of(samples[EAGER]),
                        baseline_is=EAGER,
                    )


def _named(name: str, contender: Contender) -> Contender:
    return Contender(name, contender.call, contender.cpu_seconds)


def _in_process(
    part: LoadedPart, manifest: SnapshotManifest, reference: Reference, batch: int, form: Form, stack: ExitStack
) -> list[Contender]:
    arrays = [dict(one) for one in reference.arrays(batch)]
    bodies = [
        (bytearray(body), parse_header_length(headers.get(HEADER_LENGTH))) for body, headers in map(form.write, arrays)
    ]
    loop = uvloop.new_event_loop()
    stack.callback(loop.close)
    server = loop.run_until_complete(_part_server(part, manifest, stack))

    def codec(number: int) -> EncodedBody:
        wanted = decode_request(*bodies[number % REQUESTS])
        found = part.infer({name: tensor.data for name, tensor in wanted.inputs.items()})
        outputs = {name: Tensor("FP32", array) for name, array in found.items()}
        return encode_response(InferResponse(MODEL, outputs), binary=wanted.binary_names(list(outputs)))

    async def queued(number: int) -> object:
        body, length = bodies[number % REQUESTS]
        about = About(MODEL, WHOLE, GENERATION)
        leased = server.lease(MODEL, WHOLE, GENERATION)
        answer = server.infer_v2(leased, body, length, about=about, seconds=10, finish=lambda answer, *_: answer)
        return await answer if isinstance(answer, asyncio.Future) else answer

    return [
        Contender(ENGINE, lambda number: part.infer(arrays[number % REQUESTS]), time.process_time),
        Contender(CODEC, codec, time.process_time),
        LoopContender(QUEUE, queued, time.process_time, loop),
    ]


async def _part_server(part: LoadedPart, manifest: SnapshotManifest, stack: ExitStack) -> PartServer:
    held: HeldSnapshots[ServedPart] = HeldSnapshots()
    hold = HostedSnapshot(
        model=MODEL,
        part=WHOLE,
        engine=manifest.engine,
        snapshot=1,
        digest=manifest.digest,
        uri="file:///nowhere",
        generations=(GENERATION,),
    )
    held.want([hold])
    held.note_loaded(hold, ServedPart(part, BatchLimits()))
    queue = InferenceQueue()
    stack.callback(queue.close)
    return PartServer(held, queue, lambda _: None, region=REGION)


def _connects(port: int) -> bool:
    """Return True; ConnectionRefusedError if nothing listens."""
    socket.create_connection((LOOPBACK, port), 10).close()
    return True


def _bare(reference: Reference, batch: int, folder: Path, stack: ExitStack) -> Contender:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving.servers.bare_forward",
        *map(str, (port, reference.rows, batch)),
    ]
    environment = {"PYTHONPATH": str(ROOT)}
    log = folder / "bare.log"
    server = stack.enter_context(ServerProcess(command, port=port, log=log, environment=environment, folder=folder))
    server.wait(lambda: _connects(port))
    connection = stack.enter_context(socket.create_connection((LOOPBACK, port), 30))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(_: int) -> object:
        connection.sendall(b".")
        return connection.recv(1)

    return Contender(BARE, call, server.cpu_seconds)


def _http_alone(reference: Reference, batch: int, form: Form, folder: Path, stack: ExitStack) -> Contender:
    port, size = free_port(), 4 * batch + 250
    command = [sys.executable, "-m", "benchmarks.serving.servers.echo", str(port), str(size)]
    environment = {"PYTHONPATH": str(ROOT)}
    server = ServerProcess(command, port=port, log=folder / "echo.log", environment=environment, folder=folder)
    stack.enter_context(server)
    requests = [form.request(HOST_PATH, arrays, PINNED) for arrays in reference.arrays(batch)]
    server.wait(lambda: answers(port))
    connection = stack.enter_context(Connection(port))
    return Contender(HTTP, lambda number: connection.exchange(requests[number % REQUESTS]), server.cpu_seconds)
