"""IPnext's own ways to an answer, each beside the eager forward: a host, the router before it, Envoy before both."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving.bodies import V2_BINARY, V2_JSON
from benchmarks.serving.reference import EAGER, Asked, Reference
from benchmarks.serving.report import Figures, Row, Section
from benchmarks.serving.servers.own import GENERATION, INFER_PATH, MODEL, Holding, OwnServers
from benchmarks.serving.servers.process import ServerProcess
from benchmarks.serving.timing import measure
from ipnext.model.registry.registry import SnapshotManifest, single_part_graph
from ipnext.names import GENERATION_HEADER

WHOLE = "whole"
HOST_PATH = f"/parts/{MODEL}/{WHOLE}/infer"
PINNED = {GENERATION_HEADER: str(GENERATION)}
IPNEXT = str(Path(sys.executable).with_name("ipnext"))


def on_host(name: str, server: ServerProcess) -> list[Asked]:
    """Return both forms of a host asked itself: JSON and binary."""
    return [Asked(name, [server], HOST_PATH, form, PINNED) for form in (V2_JSON, V2_BINARY)]


def on_edge(name: str, servers: Sequence[ServerProcess]) -> list[Asked]:
    """Return both forms of a router or gateway (the first), with the processes behind it."""
    return [Asked(name, servers, INFER_PATH, form, {}) for form in (V2_JSON, V2_BINARY)]


def edges(own: OwnServers, host: Holding, manifest: SnapshotManifest) -> list[Asked]:
    """Return a host of the whole model, a router before it, and Envoy before both, each in both forms."""
    graph = single_part_graph(WHOLE, manifest.signature)
    router = own.router("router", graph, [host])
    gateway = own.gateway("envoy", graph, router)
    return [
        *on_host("host", host.server),
        *on_edge("router, host", [router, host.server]),
        *on_edge("Envoy, router, host", [gateway, router, host.server]),
    ]


def ways(own: OwnServers, reference: Reference, folder: Path, *, compiled: bool) -> list[Asked]:
    """Host, router, gateway, and a host with the compiled snapshot if there is one."""
    manifest = reference.export(folder / WHOLE)
    found = edges(own, own.host("host", {WHOLE: folder / WHOLE}), manifest)
    if compiled:
        other = own.host("compiled", {WHOLE: compile_snapshot(folder / WHOLE, folder / "compiled")}, {"compile": True})
        found += on_host("host, AOTInductor", other.server)
    return found


def compile_snapshot(source: Path, target: Path) -> Path:
    """Return the compiled form of a snapshot by `ipnext compile`. Raises RuntimeError with its last line."""
    ran([IPNEXT, "compile", str(source), "--out", str(target)])
    return target


def can_compile() -> bool:
    """Whether this IPnext has `ipnext compile`."""
    return subprocess.run([IPNEXT, "compile", "--help"], capture_output=True, check=False).returncode == 0


def own_rows(reference: Reference, folder: Path, batches: Sequence[int], seconds: float) -> Iterator[Row]:
    """Every way at every batch size, in turns with the eager forward."""
    compiled = can_compile()
    with OwnServers(folder) as own:
        asked = ways(own, reference, folder, compiled=compiled)
        for batch in batches:
            yield from rows_of("ours", reference, asked, batch, seconds)
    if not compiled:
        yield Row(section="ours", subject="host, AOTInductor", note="not measured: this IPnext has no `ipnext compile`")


def rows_of(
    section: Section, reference: Reference, asked: Sequence[Asked], batch: int, seconds: float, *, beside: str = ""
) -> Iterator[Row]:
    """One batch size: the eager forward and all that are asked, in turns."""
    equal = [one.check(reference, batch) for one in asked]
    with ExitStack() as stack:
        contenders = [one.contender(reference, batch, stack) for one in asked]
        samples = measure([reference.contender(batch), *contenders], seconds)
    for one, contender, same in zip(asked, contenders, equal, strict=True):
        yield Row(
            section=section,
            subject=one.name,
            form=one.form.name,
            batch=batch,
            beside=beside,
            own=Figures.of(samples[contender.name]),
            baseline=Figures.of(samples[EAGER]),
            baseline_is=EAGER,
            bit_equal=same,
        )


def ran(command: Sequence[str]) -> None:
    """Run a command to its end. Raises RuntimeError with the last line of what failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        msg = f"{' '.join(command[:2])} ended with {done.returncode}: {lines[-1] if lines else 'no message'}"
        raise RuntimeError(msg)
