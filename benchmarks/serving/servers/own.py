"""IPnext's own processes for the benchmark.

Hosts, a router and Envoy as a region runs them, over a store of their own.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.environments import ROOT
from benchmarks.serving.http_wire import LOOPBACK
from benchmarks.serving.servers.process import ServerProcess
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.envoy import bootstrap
from ipnext.infra.envoy import config as envoy
from ipnext.infra.gateway.process import envoy_binary
from ipnext.infra.process.ports import free_port
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds, HostState
from ipnext.model.deployment.route_table import RouteShare, RouteTable, Shadow
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterState, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import PartGraph

MODEL = "dlrm"
REGION = "here"
GENERATION = 1
SHADOW = 2
INFER_PATH = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True)
class Holding:
    """A host, and the parts it answers for."""

    server: ServerProcess
    parts: tuple[str, ...]
    generation: int = 1


class OwnServers:
    """Starts processes, and ends them all on exit. `folder` gets store, caches, files and logs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = FileArtifactStore(folder / "store")
        self._stack = ExitStack()
        self._client = self._stack.enter_context(httpx.Client(trust_env=False, timeout=300))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def host(
        self,
        name: str,
        parts: Mapping[str, Path],
        settings: Mapping[str, Any] | None = None,
        *,
        generation: int = GENERATION,
    ) -> Holding:
        """Start a host that answers for these parts, each with its snapshot directory.

        Raises RuntimeError if one does not load.
        """
        options = ["--id", name, "--artifacts", self._store.uri, "--cache", str(self._folder / "cache")]
        server = self._ours("serving.host", name, options)
        holds = tuple(self._hold(part, path, settings or {}, generation) for part, path in parts.items())
        wanted = HostHolds(holds=holds)
        url = f"http://{LOOPBACK}:{server.port}/control"
        self._client.put(f"{url}/holds", content=wanted.model_dump_json()).raise_for_status()

        def ready() -> bool:
            state = HostState.model_validate_json(self._client.get(f"{url}/state").content)
            if state.failures:
                raise RuntimeError(state.failures[0].message)
            return len(state.ready) == len(parts)

        server.wait(ready, seconds=300)
        return Holding(server, tuple(parts), generation)

    def router(
        self, name: str, graph: PartGraph, hosts: Sequence[Holding], *options: str, shadow_share: float = 0.0
    ) -> ServerProcess:
        """Start a router that serves the model by this graph over these hosts, with these command-line options.

        It mirrors a share of requests to the hosts of the generation SHADOW.
        """
        table = self._folder / f"{name}.json"
        endpoints = tuple(
            PartEndpoint(part=part, url=f"http://{LOOPBACK}:{host.server.port}", generations=(host.generation,))
            for host in hosts
            for part in host.parts
        )
        shadow = Shadow(served=_served(graph, SHADOW), share=shadow_share) if shadow_share else None
        model = RoutedModel(model=MODEL, served=(_served(graph),), endpoints=endpoints, shadow=shadow)
        table.write_text(RouterTable(revision=1, region=REGION, models=(model,)).model_dump_json())
        server = self._ours("serving.router", name, ["--table", str(table), *options])
        url = f"http://{LOOPBACK}:{server.port}/control/state"
        return server.wait(lambda: RouterState.model_validate_json(self._client.get(url).content).revision == 1)

    def gateway(self, name: str, graph: PartGraph, router: ServerProcess) -> ServerProcess:
        """Envoy in front of a router, with the configuration that a region gives it."""
        share = RouteShare(to=REGION, generation=GENERATION, fraction=1.0)
        table = RouteTable(model=MODEL, region=REGION, revision=1, shares=(share,), served=(_served(graph),))
        given = envoy.Gateway(
            region=REGION,
            router_url=f"http://{LOOPBACK}:{router.port}",
            peers={},
            tables={MODEL: table},
            request_seconds=30.0,
        )
        routes, clusters = self._folder / f"{name}-routes.json", self._folder / f"{name}-clusters.json"
        routes.write_bytes(envoy.as_json(envoy.discovery(1, envoy.routes(given))))
        clusters.write_bytes(envoy.as_json(envoy.discovery(1, envoy.clusters(given))))
        port, config = free_port(), self._folder / f"{name}-bootstrap.json"
        config.write_bytes(
            envoy.as_json(
                bootstrap.bootstrap(
                    port,
                    str(self._folder / f"{name}-admin.sock"),
                    region=REGION,
                    routes_file=str(routes),
                    clusters_file=str(clusters),
                )
            )
        )
        flags = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
        server = self._started([str(envoy_binary()), "--config-path", str(config), *flags], name, port)
        return server.wait(lambda: self._client.get(f"http://{LOOPBACK}:{port}/v2/health/ready").status_code == 200)

    def _ours(self, module: str, name: str, options: Sequence[str]) -> ServerProcess:
        port = free_port()
        command = [sys.executable, "-m", module, "--port", str(port), "--region", REGION, *options]
        server = self._started(command, name, port)
        return server.wait(lambda: self._client.get(f"http://{LOOPBACK}:{port}/healthz").status_code == 200)

    def _started(self, command: Sequence[str], name: str, port: int) -> ServerProcess:
        log = self._folder / f"{name}.log"
        started = ServerProcess(command, port=port, log=log, environment={"PYTHONPATH": str(ROOT)}, folder=self._folder)
        return self._stack.enter_context(started)

    def _hold(self, part: str, directory: Path, settings: Mapping[str, Any], generation: int) -> HostedSnapshot:
        source = ingest_directory(self._store, directory)
        return HostedSnapshot(
            model=MODEL,
            part=part,
            engine=source.manifest.engine,
            snapshot=1,
            digest=source.manifest.digest,
            uri=source.uri,
            generations=(generation,),
            settings=settings,
        )


def _served(graph: PartGraph, generation: int = GENERATION) -> ServedGeneration:
    parts = {node.part for node in graph.nodes}
    return ServedGeneration(generation=generation, graph=graph, snapshots=dict.fromkeys(sorted(parts), 1))
