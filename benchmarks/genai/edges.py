"""Processes of the OpenAI benchmarks.

Mock engines, IPnext's router and Envoy, and the peers, each in its own environment.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import httpx

from benchmarks.environments import ROOT, make_environment
from benchmarks.serving.servers.process import ONE_THREAD, ServerProcess
from ipnext.infra.envoy import bootstrap
from ipnext.infra.envoy import config as envoy
from ipnext.infra.gateway.process import envoy_binary
from ipnext.infra.process.ports import LOOPBACK, free_port
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from ipnext.model.settings.engine import VllmSettings
from ipnext.model.settings.routing import RoutingPolicy
from serving.genai.command_line.vllm_command import engine_command, engine_environment
from serving.genai.engine import process_reaper

MODEL: Final = "llm"
REGION: Final = "here"
PEERS: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm-router": ("vllm-router==0.1.17",),
    "litellm": ("litellm[proxy]==1.108.7",),
}
"""Packages of each peer's environment."""
ENVIRONMENT: Final[Mapping[str, str]] = {
    "PYTHONPATH": str(ROOT),
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
MOCK: Final = ROOT / "tests" / "genai" / "support" / "mock_engine.py"


def make_peer(name: str, folder: Path) -> None:
    """As of `make_environment`."""
    make_environment(folder / name, PEERS[name])


class Edges:
    """Starts servers; all end with it."""

    def __init__(self, work: Path, peers: Path) -> None:
        self._work = work
        self._peers = peers
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def mock(self, **options: float) -> ServerProcess:
        """Start a mock engine whose cache can be emptied, with the options of its command line."""
        port = free_port()
        flags = [f"--{name.replace('_', '-')}={value:g}" for name, value in options.items()]
        command = [sys.executable, str(MOCK), "--port", str(port), "--model", MODEL, *flags]
        return self._run(command, port, "/health", environment={**ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"})

    def vllm(self, checkpoint: Path, settings: VllmSettings) -> ServerProcess:
        """Start a real vLLM server as a host starts it for a part of these settings, under its keeper.

        Its cache can be emptied.

        Raises LoadFailed if there is no vLLM.
        """
        port = free_port()
        command = engine_command(MODEL, checkpoint, port, settings, environment=os.environ)
        environment = {**engine_environment(settings, ONE_THREAD, swap=True), "PYTHONPATH": ""}
        kept = [sys.executable, "-S", process_reaper.__file__, *command]
        ours, lifeline = os.pipe()
        self._stack.callback(os.close, lifeline)
        try:
            return self._run(kept, port, "/health", seconds=settings.start_seconds, environment=environment, stdin=ours)
        finally:
            os.close(ours)

    def router(self, engines: Sequence[str], *, policy: RoutingPolicy = "prefix") -> ServerProcess:
        """IPnext's router before these engines."""
        port = free_port()
        model = RoutedModel(
            model=MODEL,
            served=(_served(policy),),
            endpoints=tuple(PartEndpoint(part=MODEL, url=url, generations=(1,)) for url in engines),
        )
        table = self._file("table", RouterTable(revision=1, region=REGION, models=(model,)).model_dump_json().encode())
        command = [sys.executable, "-m", "serving.router", "--port", str(port), "--region", REGION, "--table", table]
        return self._run(command, port, "/v2/health/ready")

    def envoy(self, router_port: int) -> ServerProcess:
        """Envoy before a router, as a region's agent configures it."""
        share = RouteShare(to=REGION, generation=1, fraction=1.0)
        table = RouteTable(model=MODEL, region=REGION, revision=1, shares=(share,), served=(_served("prefix"),))
        gateway = envoy.Gateway(
            region=REGION,
            router_url=f"http://127.0.0.1:{router_port}",
            peers={},
            tables={MODEL: table},
            request_seconds=60.0,
        )
        port = free_port()
        config = bootstrap.bootstrap(
            port,
            str(self._work / "admin.sock"),
            region=REGION,
            routes_file=self._file("routes", envoy.as_json(envoy.discovery(1, envoy.routes(gateway)))),
            clusters_file=self._file("clusters", envoy.as_json(envoy.discovery(1, envoy.clusters(gateway)))),
        )
        path = self._file("bootstrap", envoy.as_json(config))
        flags = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
        return self._run([str(envoy_binary()), "--config-path", path, *flags], port, "/v2/health/ready")

    def plain_envoy(self, port_behind: int) -> ServerProcess:
        """Envoy with one route to a server of this port: the gateway of peers that bring none."""
        port = free_port()
        path = self._file("plain", envoy.as_json(_plain_gateway(port, port_behind)))
        flags = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
        return self._run([str(envoy_binary()), "--config-path", path, *flags], port, "/health")

    def vllm_router(self, engines: Sequence[str], *, policy: str) -> ServerProcess:
        """vllm-router (Rust) before these engines. FileNotFoundError if it is not installed."""
        port = free_port()
        command = [str(self._program("vllm-router")), "--host", LOOPBACK, "--port", str(port), "--policy", policy]
        command += ["--worker-urls", *engines, "--prometheus-port", str(free_port()), "--log-level", "error"]
        return self._run(command, port, "/health")

    def litellm(self, engines: Sequence[str]) -> ServerProcess:
        """LiteLLM's proxy before these engines. FileNotFoundError if it is not installed."""
        port = free_port()
        lines = ["general_settings:", "  dangerously_permit_weak_or_unset_master_key: true", "model_list:"]
        for url in engines:
            lines += [f"- model_name: {MODEL}", "  litellm_params:", f"    model: hosted_vllm/{MODEL}"]
            lines += [f"    api_base: {url}/v1", "    api_key: none"]
        config = self._file("litellm", "\n".join(lines).encode(), "yaml")
        command = [str(self._program("litellm")), "--config", config, "--host", LOOPBACK, "--port", str(port)]
        return self._run([*command, "--telemetry", "False"], port, "/health/liveliness", seconds=120.0)

    def _program(self, name: str) -> Path:
        path = self._peers / name / "bin" / name
        if not path.is_file():
            msg = f"{name} is not installed: add --with {name}"
            raise FileNotFoundError(msg)
        return path

    def _file(self, name: str, content: bytes, kind: str = "json") -> str:
        self._count += 1
        path = self._work / f"{name}-{self._count}.{kind}"
        path.write_bytes(content)
        return str(path)

    def _run(
        self,
        command: list[str],
        port: int,
        ready: str,
        *,
        seconds: float = 60.0,
        environment: Mapping[str, str] = ENVIRONMENT,
        stdin: int = subprocess.DEVNULL,
    ) -> ServerProcess:
        self._count += 1
        log = self._work / f"{Path(command[0]).name}-{self._count}.log"
        server = ServerProcess(command, port=port, log=log, environment=environment, folder=self._work, stdin=stdin)
        self._stack.enter_context(server)
        return server.wait(
            lambda: httpx.get(f"http://{LOOPBACK}:{port}{ready}", trust_env=False).is_success, seconds=seconds
        )


def _plain_gateway(port: int, port_behind: int) -> dict[str, Any]:
    kinds = "type.googleapis.com/envoy.extensions.filters"
    router = {"@type": f"{kinds}.http.router.v3.Router", "suppress_envoy_headers": True}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "behind", "timeout": "60s"}}
    connections = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]
    listener = {"name": "plain", "address": _address(port), "filter_chains": [{"filters": filters}]}
    endpoint = {"endpoint": {"address": _address(port_behind)}}
    cluster = {
        "name": "behind",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "behind", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}


def _served(policy: RoutingPolicy) -> ServedGeneration:
    node = GraphNode(name=MODEL, part=MODEL, inputs={"prompt": "request.prompt"})
    graph = PartGraph(nodes=(node,), outputs={"text": f"{MODEL}.text"})
    return ServedGeneration(
        generation=1, graph=graph, snapshots={MODEL: 1}, engines={MODEL: "vllm"}, routing={MODEL: policy}
    )
