"""The time from publishing a snapshot to both regions' answers.

It is compared with what copying and loading it takes on the same machine.

    python -m benchmarks.serving.release --docs
    python -m benchmarks.serving.release --rows 1000 --publishes 1

A real platform of two regions with a replica each, no canary, no hold. After each publish the same snapshot is copied
into another store, and fetched, loaded and warmed up by two processes at once, as the regions' hosts do: that is the
baseline. Answers are asked for at both gateways every 10 ms.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import structlog
from rich.console import Console

from benchmarks.environments import ROOT
from benchmarks.serving.bodies import V2_BINARY
from benchmarks.serving.dlrm import FULL_ROWS
from benchmarks.serving.reference import Reference
from benchmarks.serving.report import Figures, Report, Row
from benchmarks.serving.servers.process import ONE_THREAD
from benchmarks.serving.tables import PAGE, rewritten, show
from benchmarks.serving.targets import RELEASE_BEYOND
from benchmarks.serving.timing import Sample
from demo.embedded import Embedded
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.client import Client
from ipnext.names import GENERATION_HEADER

MODEL = "release"
REGIONS = ("us-east", "eu-west")
MANIFEST = f"""
apiVersion: ipnext/v1
kind: Model
metadata: {{name: {MODEL}, owner: bench}}
spec:
  parts: [{{name: whole, hardware: [{{kind: cpu, units: 1, qps: 100}}]}}]
  demand: [{{region: {REGIONS[0]}, qps: 50}}, {{region: {REGIONS[1]}, qps: 50}}]
  latencyToleranceMs: 50
  rollout: {{canary: 1, maxStep: 1, holdSeconds: 0}}
"""
POLL_SECONDS = 0.01
LIMIT_SECONDS = 180.0


def published(
    client: Client, gateways: Mapping[str, str], request: tuple[bytes, Mapping[str, str]], snapshot: Path
) -> Iterator[tuple[str, float]]:
    """Seconds of one publish: until it was acknowledged, and until every region answered with it."""
    began = time.perf_counter()
    change = client.publish(MODEL, {"whole": snapshot})
    yield "upload and acknowledge", time.perf_counter() - began
    waiting, generation = dict(gateways), _generation(client, change.id)
    body, headers = request
    with httpx.Client(trust_env=False) as http:
        while waiting:
            for region, url in tuple(waiting.items()):
                answer = http.post(f"{url}/v2/models/{MODEL}/infer", content=body, headers=headers)
                if answer.status_code == 200 and answer.headers[GENERATION_HEADER] == generation:
                    del waiting[region]
            if time.perf_counter() - began > LIMIT_SECONDS:
                msg = f"{', '.join(waiting)}: no answer with generation {generation} in {LIMIT_SECONDS:g} s"
                raise RuntimeError(msg)
            time.sleep(POLL_SECONDS if waiting else 0)
    yield "publish to answering everywhere", time.perf_counter() - began
    client.wait_change(change.id, timeout_seconds=LIMIT_SECONDS)


def _generation(client: Client, change_id: str) -> str:
    """Return the number that the platform gives the change; it may come a moment after the acknowledgement."""
    while (change := client.change(change_id)).generation is None:
        time.sleep(POLL_SECONDS)
    return str(change.generation)


def bare(former: Path, snapshot: Path) -> Iterator[tuple[str, float]]:
    """Seconds of copying into a store, and of loading from it by as many processes at once as there are regions."""
    with tempfile.TemporaryDirectory(prefix="ipn-") as place:
        store = FileArtifactStore(Path(place) / "store")
        former_uri = ingest_directory(store, former).uri
        began = time.perf_counter()
        uri = ingest_directory(store, snapshot).uri
        yield "baseline: copy into a store", time.perf_counter() - began
        module = [sys.executable, "-m", "benchmarks.serving.servers.bare_load", store.uri, former_uri, uri]
        loads = [
            subprocess.Popen(
                [*module, str(Path(place) / region)],
                cwd=ROOT,
                env={"PYTHONPATH": str(ROOT), "PATH": "", **ONE_THREAD},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for region in REGIONS
        ]
        for load in loads:
            load.stdout.readline()  # type: ignore[union-attr]  # a pipe
        for load in loads:
            load.stdin.write("\n")  # type: ignore[union-attr]  # a pipe
            load.stdin.flush()  # type: ignore[union-attr]  # a pipe
        yield "baseline: fetch, load, warm up, two at once", max(float(load.communicate()[0]) for load in loads)


def measured(rows: int, publishes: int) -> Iterator[Row]:
    """Yield a row a stage. The first publish starts the hosts and does not count."""
    samples: dict[str, Sample] = defaultdict(Sample)
    request = V2_BINARY.write(Reference(rows).arrays(1)[0])
    with tempfile.TemporaryDirectory(prefix="ipn-") as place, Embedded(Path(place) / "state") as platform:
        client = Client(platform.endpoints["api"])
        client.apply(MANIFEST)
        for number in range(publishes + 1):
            snapshot = Path(place) / f"snapshot-{number}"
            Reference(rows, seed=number).export(snapshot)
            found = dict(published(client, platform.endpoints["gateways"], request, snapshot))
            if number == 0:
                continue
            found |= dict(bare(snapshot.with_name(f"snapshot-{number - 1}"), snapshot))
            least = sum(seconds for stage, seconds in found.items() if stage.startswith("baseline"))
            found[RELEASE_BEYOND] = found["publish to answering everywhere"] - least
            for stage, seconds in found.items():
                samples[stage].seconds.append(seconds)
                samples[stage].calls += 1
    for stage, sample in samples.items():
        yield Row(section="release", subject=stage, own=Figures.of(sample))


def main() -> None:
    """Measures, adds to the results, writes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FULL_ROWS, help="of each of the 26 tables (default: 287 MB in all)")
    parser.add_argument("--publishes", type=int, default=5, help="that count")
    parser.add_argument("--results", type=Path, help="JSON file that rows are added to (default: below .ipnext/bench)")
    parser.add_argument("--docs", action="store_true", help=f"rewrite the measured blocks of {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    path = asked.results or ROOT / ".ipnext" / "bench" / f"serving-{asked.rows}.json"
    command = f"python -m benchmarks.serving.release {shlex.join(sys.argv[1:])}".rstrip()
    report = Report.at(path, asked.rows).with_section("release", measured(asked.rows, asked.publishes), command)
    report.write(path)
    show(report, Console(width=None if sys.stdout.isatty() else 200))
    if asked.docs:
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")


if __name__ == "__main__":
    main()
