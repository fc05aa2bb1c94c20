"""What the proxy of a host costs a call: mTLS on a port through Envoy, over the host's Unix socket.

    python -m benchmarks.infra.host_proxy  (--rounds 20 --seconds 0.5 --json out.json)

One torch host, called by this process as a router calls it, in turns over its socket and through its proxy on the
loopback. The baseline is the socket in the same round. CPU is that of host and Envoy together, for each call.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.infra.host_start import Bench
from ipnext.components.authority import CertificateAuthority
from ipnext.components.client_contexts import ClientContexts
from ipnext.components.http_sessions import HttpSessions
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.components.private_files import make_private_directory
from ipnext.components.sockets import socket_url
from ipnext.infra.control import Control
from ipnext.infra.process.ports import LOOPBACK, free_port
from ipnext.infra.process.spawn import fresh
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from serving.protocol.tensors import Tensor
from serving.routing.host_call import CallState
from serving.routing.host_client import HostClient
from serving.routing.host_connection import ConnectionLost
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.table import GenerationRoute, generation_route

MODEL = REGION = "lookup"
HOST, ROUTER = (ComponentIdentity("ipnext.local", one, REGION) for one in (Component.HOST, Component.ROUTER))
WARM_UP_SECONDS = 2.0
CALL_SECONDS = 60.0
WAYS = ("socket", "proxy")


@dataclass
class Turns:
    """What was measured of one way, by turn, in microseconds."""

    p50: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def routed(url: str) -> GenerationRoute:
    """Return the route of the model's only generation to a host at `url`."""
    graph = PartGraph(
        nodes=(GraphNode(name=MODEL, part=MODEL, inputs={"ids": "request.ids"}),), outputs={"score": f"{MODEL}.output"}
    )
    served = ServedGeneration(generation=1, graph=graph, snapshots={MODEL: 1})
    endpoint = PartEndpoint(part=MODEL, url=url, generations=(1,))
    return generation_route(RoutedModel(model=MODEL, served=(served,), endpoints=(endpoint,)), served)


async def turn(client: HostClient, route: GenerationRoute, pids: Sequence[int], seconds: float) -> tuple[float, float]:
    """Call for so long; return the median, and CPU for one call, both in microseconds."""
    inputs = {"ids": Tensor("INT64", np.arange(16, dtype=np.int64).reshape(4, 4))}
    waits: list[float] = []
    cpu, ended = spent(pids), time.perf_counter() + seconds
    while (began := time.perf_counter()) < ended:
        await client.infer(route, MODEL, inputs, CallState(time.monotonic() + CALL_SECONDS))
        waits.append(time.perf_counter() - began)
    return statistics.median(waits) * 1e6, (spent(pids) - cpu) / len(waits) * 1e6


def spent(pids: Sequence[int]) -> float:
    """Return the processor seconds of these processes so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


async def measure(rounds: int, seconds: float, place: Path) -> Mapping[str, Turns]:
    """Return the turns of each way; each way is the first one in every other round."""
    issuer = Issuer(CertificateAuthority.create(), place / "certificates", lasts_seconds=86_400, renewed_at=1)
    issuer.issue((HOST, ROUTER))
    found = {way: Turns() for way in WAYS}
    sockets, port = place / "h", free_port()
    make_private_directory(sockets)
    urls = dict(zip(WAYS, (socket_url(sockets), f"https://{LOOPBACK}:{port}"), strict=True))
    async with aclosing(HttpSessions()) as session:
        control = Control(session, probe_seconds=CALL_SECONDS)
        bench = Bench(place, control, os.environ)
        own = issuer.files(HOST)
        names = {"CERTIFICATE": own.certificate, "KEY": own.key, "CA": own.authorities}
        environment = {**os.environ, **{f"IPNEXT_COMPONENT_{name}_FILE": str(path) for name, path in names.items()}}
        words = ["--region", REGION, "--sockets", str(sockets)]
        host = ["serving.host", *words, "--id", "h", "--artifacts", bench.store, "--cache", str(place / "cache")]
        proxy = ["ipnext.infra.host_proxy_process", *words, "--host", LOOPBACK, "--port", str(port)]
        with (place / "log").open("ab") as log:
            started = [
                await fresh([sys.executable, "-m", *host], environment, log),
                await fresh([sys.executable, "-m", *proxy, "--state", str(place / "proxy")], environment, log),
            ]
        client = HostClient(
            HostLoadBalancer(time.monotonic), time.monotonic, contexts=ClientContexts(issuer.files(ROUTER), HOST)
        )
        try:
            await bench.until_held(urls["socket"], tell=True)
            await bench.until_held(urls["socket"], tell=False)
            routes = {way: routed(url) for way, url in urls.items()}
            pids = [one.pid for one in started]
            for way in WAYS:
                await until_called(client, routes[way])
                await turn(client, routes[way], pids, WARM_UP_SECONDS)
            for number in range(rounds):
                for way in WAYS[:: 1 if number % 2 else -1]:
                    p50, cpu = await turn(client, routes[way], pids, seconds)
                    found[way].p50.append(p50)
                    found[way].cpu.append(cpu)
        finally:
            client.close()
            for process in started:
                process.signal(signal.SIGTERM)
                await process.wait()
    return found


async def until_called(client: HostClient, route: GenerationRoute) -> None:
    """Return once the host answers this way: the proxy may still be starting."""
    (url,) = route.urls
    while True:
        with suppress(ConnectionLost):
            await client.reach(url)
            return
        await asyncio.sleep(0.05)


def ratio(found: Mapping[str, Turns], figure: str) -> float:
    """Return the median, over the rounds, of the proxy over the socket."""
    pairs = zip(getattr(found["proxy"], figure), getattr(found["socket"], figure), strict=True)
    return float(statistics.median(ours / theirs for ours, theirs in pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        found = asyncio.run(measure(given.rounds, given.seconds, Path(place)))
    table = Table("median of the turns, us", *WAYS, "proxy / socket")
    for figure in ("p50", "cpu"):
        cells = [f"{statistics.median(getattr(found[way], figure)):.0f}" for way in WAYS]
        table.add_row(figure, *cells, f"{ratio(found, figure):.3f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({way: vars(turns) for way, turns in found.items()}))


if __name__ == "__main__":
    main()
