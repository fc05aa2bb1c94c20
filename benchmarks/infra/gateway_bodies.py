"""Memory and time that a large OpenAI request body costs a region's gateway.

    python -m benchmarks.infra.gateway_bodies

A real Envoy with the configuration of a region and a real router without an engine: the router refuses the request. The
body is JSON of 31 MiB. While Envoy has it, another client asks for the gateway's health, in turns.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil

from ipnext.infra.envoy import bootstrap
from ipnext.infra.envoy import config as envoy
from ipnext.infra.gateway.process import envoy_binary
from ipnext.infra.process.ports import PortBook
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.router_table import RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph

BODY_BYTES = 31 * 2**20
GRAPH = PartGraph(
    nodes=(GraphNode(name="llm", part="llm", inputs={"prompt": "request.prompt"}),), outputs={"text": "llm.text"}
)


def start(directory: Path, ports: PortBook, stack: ExitStack) -> tuple[str, psutil.Process]:
    """Start router and Envoy; return the gateway's URL and the process of Envoy."""
    served = ServedGeneration(generation=1, graph=GRAPH, snapshots={"llm": 1}, engines={"llm": "vllm"})
    shares = (RouteShare(to="eu", generation=1, fraction=1.0),)
    table = RouteTable(model="llm", region="eu", revision=1, shares=shares, served=(served,))
    router, gateway_port = ports.port("router"), ports.port("gateway")
    (directory / "router.json").write_text(RouterTable(revision=1, region="eu").model_dump_json())
    gateway = envoy.Gateway(
        region="eu", router_url=f"http://127.0.0.1:{router}", peers={}, tables={"llm": table}, request_seconds=60.0
    )
    files = {name: directory / f"{name}.json" for name in ("routes", "clusters", "bootstrap")}
    files["routes"].write_bytes(envoy.as_json(envoy.discovery(1, envoy.routes(gateway))))
    files["clusters"].write_bytes(envoy.as_json(envoy.discovery(1, envoy.clusters(gateway))))
    config = bootstrap.bootstrap(
        gateway_port,
        str(directory / "admin.sock"),
        region="eu",
        routes_file=str(files["routes"]),
        clusters_file=str(files["clusters"]),
    )
    files["bootstrap"].write_bytes(envoy.as_json(config))
    routed = [*("--port", str(router)), *("--region", "eu"), *("--table", str(directory / "router.json"))]
    flags = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
    commands = (
        [sys.executable, "-m", "serving.router", *routed],
        [str(envoy_binary()), "-c", str(files["bootstrap"]), *flags],
    )
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
    return f"http://127.0.0.1:{gateway_port}", psutil.Process(process.pid)


def health_seconds(url: str) -> float:
    """Return how long an answer about the gateway's health takes."""
    began = time.monotonic()
    httpx.get(f"{url}/v2/health/live", timeout=60).raise_for_status()
    return time.monotonic() - began


def await_gateway(url: str) -> None:
    """Return once the gateway answers."""
    while True:
        try:
            health_seconds(url)
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return


def peak_bytes(process: psutil.Process) -> int:
    """Return the most memory that a process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    """Measure and print one line of JSON."""
    beginning = '{"model":"llm","messages":['
    body = (beginning + "[]," * ((BODY_BYTES - len(beginning)) // 3) + "[]]}").encode()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        url, process = start(Path(name), PortBook(Path(name) / "ports.json"), stack)
        await_gateway(url)
        before, used = peak_bytes(process), sum(process.cpu_times()[:2])
        answers: list[int] = []
        headers = {"content-type": "application/json"}

        def ask() -> None:
            answers.append(
                httpx.post(f"{url}/v1/chat/completions", content=body, headers=headers, timeout=120).status_code
            )

        asking = threading.Thread(target=ask)
        asking.start()
        waits = []
        while asking.is_alive():
            waits.append(health_seconds(url))
        figures = {
            "status": answers[0],
            "body_mib": len(body) / 2**20,
            "envoy_mib_before": before / 2**20,
            "envoy_mib_peak": peak_bytes(process) / 2**20,
            "envoy_cpu_seconds": sum(process.cpu_times()[:2]) - used,
            "longest_wait_seconds": max(waits, default=0.0),
        }
    print(json.dumps({key: round(value, 3) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
