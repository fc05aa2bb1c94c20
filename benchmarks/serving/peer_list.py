"""The peers: what each one is, the environment it lives in, and how it is asked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.environments import ROOT, make_environment
from benchmarks.serving.bodies import OWN_JSON, RAW, ROWS_JSON, V2_BINARY, V2_JSON, Form
from benchmarks.serving.servers.process import ServerProcess
from ipnext.infra.process.ports import free_port

V2_PATH = "/v2/models/dlrm/infer"

ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "fastapi": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "orjson==3.13.0"),
    "kserve": ("kserve==0.21.0",),
    "mlserver": ("mlserver==1.7.1",),
    "litserve": ("litserve==0.2.19",),
    "bentoml": ("bentoml==1.4.40",),
    "rayserve": ("ray[serve]==2.60.0",),
}
"""Packages of each environment, pinned; torch comes from ours."""


@dataclass(frozen=True)
class Peer:
    """A server to be measured. `batching` is the form in which it takes requests that it joins, if it does that."""

    name: str
    what: str
    environment: str
    module: str
    path: str
    forms: tuple[Form, ...]
    batching: Form | None = None


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("uvicorn", "uvicorn 0.54, bare ASGI (anchor)", "fastapi", "uvicorn_raw", "/", (RAW,)),
        Peer("fastapi", "FastAPI 0.165 (anchor)", "fastapi", "fastapi_json", "/score", (OWN_JSON,)),
        Peer("kserve", "KServe SDK 0.21", "kserve", "kserve_v2", V2_PATH, (V2_JSON, V2_BINARY)),
        Peer("mlserver", "MLServer 1.7.1", "mlserver", "mlserver_v2", V2_PATH, (V2_JSON,), V2_JSON),
        Peer("litserve", "LitServe 0.2.19", "litserve", "litserve_json", "/predict", (OWN_JSON,), OWN_JSON),
        Peer("bentoml", "BentoML 1.4.40", "bentoml", "bentoml_json", "/score", (OWN_JSON,), ROWS_JSON),
        Peer("rayserve", "Ray Serve 2.60", "rayserve", "ray_serve_json", "/", (OWN_JSON,), OWN_JSON),
    )
}


def make_peer(environment: str, folder: Path) -> None:
    """As of `make_environment`, with our torch."""
    make_environment(folder / environment, ENVIRONMENTS[environment], finish=_lend_torch)


def _lend_torch(place: Path) -> None:
    """Our packages at the end of the environment's path: what it has itself comes first, torch is not fetched again."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        msg = "torch is not installed here"
        raise RuntimeError(msg)
    [packages] = (place / "lib").glob("python*/site-packages")
    (packages / "torch_of_ipnext.pth").write_text(f"{Path(torch.origin).parents[1]}\n", encoding="utf-8")


def start(peer: Peer, rows: int, *, folder: Path, work: Path, batching: bool = False) -> ServerProcess:
    """Its process; not ready yet. FileNotFoundError if its environment was never made."""
    place = folder / peer.environment
    if not (place / "ready").is_file():
        msg = f"not installed: add --with {peer.environment}"
        raise FileNotFoundError(msg)
    port = free_port()
    environment = {
        "BENCH_PORT": str(port),
        "BENCH_SECOND_PORT": str(free_port()),
        "BENCH_ROWS": str(rows),
        "BENCH_BATCHING": str(int(batching)),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "True",
        "TMPDIR": str(work),
        "BENTOML_HOME": str(work / "bentoml"),
    }
    command = [str(place / "bin" / "python"), "-m", f"benchmarks.serving.peers.{peer.module}"]
    return ServerProcess(command, port=port, log=work / f"{peer.name}.log", environment=environment, folder=work)
