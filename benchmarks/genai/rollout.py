"""What clients see of a new snapshot of a chat model, on real vLLM: replica by replica, and by a hot swap.

    python -m benchmarks.genai.rollout [--checkpoint DIR] [--clients 16] [--docs]

A platform of its own serves the checkpoint (Gemma 3 270M as `make demo-genai` converts it); clients stream chats
through Envoy all the while. `steady` is the same clients before anything is published. The second snapshot has the same
tensors, one of them scaled, so that it differs and an engine can take it over. Figures are ratios to `steady` of the
same model in the same run.
"""

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.genai.page import rewrite, table
from demo.embedded import Embedded
from demo.genai.story import QUESTIONS, gateway_of
from demo.genai.streams import Talk, Talkers
from demo.genai.weights import DIRECTORY, models_directory
from ipnext.client import Client
from ipnext.model.api.resources import ChangeView
from ipnext.model.lifecycle.changes.change import ChangeState

MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {{name: {name}, owner: letters}}
spec:
  task: generation
  parts:
    - name: llm
      engine: vllm
      hardware: [{{kind: cpu, units: 1, qps: 2}}]
      settings:
        {{maxModelLen: 2048, dtype: bfloat16, kvCacheGib: 1, maxNumSeqs: 16, enforceEager: true, startSeconds: 1200,
         environment: {{OMP_NUM_THREADS: "1"}}}}
  demand: [{{region: us-east, qps: 1}}]
  rollout:
    {{refresh: {refresh}, canary: 0.25, maxStep: 0.5, holdSeconds: 2, maxErrorRate: 0.01, drainSeconds: {drain},
     deadlineSeconds: 1500, keepWarm: 0}}
"""
DRAIN_SECONDS = 120
CHANGE_SECONDS = 1800.0
SHORT_TOKENS = 8
PAUSE = re.compile(r"pause_seconds[\"']?[=:]\s*([0-9.]+)")


def scaled(checkpoint: Path, into: Path) -> Path:
    """Copy the checkpoint with one tensor of its last file scaled by 1.01; the other files are linked."""
    into.mkdir()
    files = sorted(checkpoint.iterdir())
    last = max(file for file in files if file.suffix == ".safetensors")
    for file in files:
        if file != last:
            os.link(file, into / file.name) if file.stat().st_dev == into.stat().st_dev else shutil.copy(file, into)
    tensors = load_file(last)
    name = max(name for name in tensors if name.endswith("norm.weight"))
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, into / last.name, metadata={"format": "pt"})
    return into


class Chat:
    """One model on the platform, and what its clients saw."""

    def __init__(self, client: Client, gateway: str, name: str, *, refresh: str) -> None:
        self._client, self._gateway, self.name = client, gateway, name
        client.apply(MANIFEST.format(name=name, refresh=refresh, drain=DRAIN_SECONDS))

    def publish(self, checkpoint: Path) -> float:
        """To its end; seconds."""
        return self._done(lambda: self._client.publish(self.name, {"llm": checkpoint}))

    def delete(self) -> None:
        """With its engines."""
        self._done(lambda: self._client.delete(self.name))

    def _done(self, begin: Callable[[], ChangeView]) -> float:
        began = time.monotonic()
        done = self._client.wait_change(begin().id, timeout_seconds=CHANGE_SECONDS)
        if done.state is not ChangeState.DONE:
            msg = f"{done.kind} of {self.name} ended {done.state}: {done.reason} {done.message}"
            raise RuntimeError(msg)
        return time.monotonic() - began

    @contextmanager
    def talk(self, *, clients: int, tokens: int) -> Iterator[Talk]:
        """Clients that ask one question after another during the rollout; their last answers are waited for."""
        talk = Talk(lambda _: None)
        with Talkers(self._gateway, self.name, QUESTIONS, talk, clients=clients, tokens=tokens):
            yield talk


def measured(
    client: Client, gateway: str, checkpoints: tuple[Path, Path], asked: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    first, second = checkpoints
    many: Mapping[str, int] = {"clients": asked.clients, "tokens": asked.tokens}
    few: Mapping[str, int] = {"clients": 1, "tokens": SHORT_TOKENS}
    for name, refresh, way, loads in (
        ("rolled", "replace", "replica by replica", (many,)),
        ("swapped", "swap", "hot swap", (many, few)),
    ):
        chat = Chat(client, gateway, name, refresh=refresh)
        chat.publish(first)
        turns = [second, first]
        for load in loads:
            with chat.talk(**load) as steady:
                time.sleep(asked.seconds)
            yield row(f"{load['clients']} clients, {load['tokens']} tokens: steady", steady, steady)
            with chat.talk(**load) as changing:
                time.sleep(asked.seconds / 2)
                seconds = chat.publish(turns.pop(0))
                time.sleep(asked.seconds / 2)
            yield row(f"{load['clients']} clients: {way}", changing, steady, seconds)
        chat.delete()


def row(what: str, talk: Talk, steady: Talk, publish: float | None = None) -> dict[str, Any]:
    """One line; `failures` go to standard error."""
    for failure in talk.failures:
        print(f"{what}: {failure}", file=sys.stderr)
    typical = statistics.median(steady.firsts)
    return {
        "what": what,
        "streams": talk.streams,
        "generations": len(talk.by_generation),
        "broken": talk.broken,
        "mixed": talk.mixed,
        "gap": talk.longest_gap,
        "gap ratio": talk.longest_gap / steady.longest_gap,
        "first": talk.longest_first,
        "waited": talk.longest_first - typical,
        "publish": publish,
    }


COLUMNS: Mapping[str, tuple[str, str]] = {
    "what": ("clients and what happens", "{}"),
    "streams": ("streams", "{}"),
    "generations": ("generations", "{}"),
    "broken": ("broken", "{}"),
    "mixed": ("mixed", "{}"),
    "gap": ("longest gap in a stream, s", "{:.2f}"),
    "gap ratio": ("over steady", "{:.2f}x"),
    "first": ("longest to a first token, s", "{:.2f}"),
    "waited": ("beyond steady's median, s", "{:+.2f}"),
    "publish": ("publish, s", "{:.0f}"),
}


def pauses(state: Path) -> list[float]:
    """Seconds that engines of the platform were paused for, one for each that went over, by their hosts' logs."""
    logs = sorted(state.glob("regions/*/logs/swapped.*.log"))
    return [float(found) for log in logs for found in PAUSE.findall(log.read_text(encoding="utf-8", errors="replace"))]


def main() -> None:
    """Measure, print, and write the page if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=models_directory() / DIRECTORY / "plain", help="as transformers writes it")
    add("--clients", type=int, default=16)
    add("--tokens", type=int, default=64, help="of each stream of theirs")
    add("--seconds", type=float, default=30.0, help="of steady streams, and around each publish")
    add("--docs", action="store_true", help="write the table into docs/genai-benchmarks.md")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as work:
        other = scaled(asked.checkpoint, Path(work) / "other")
        with Embedded(Path(work) / "state") as platform, Client(platform.endpoints["api"]) as client:
            rows = list(measured(client, gateway_of(platform.endpoints), (asked.checkpoint, other), asked))
        seen = pauses(Path(work) / "state")
    text = table(rows, COLUMNS)
    text += (
        "\n\nEngines that went over began no request for "
        f"{', '.join(f'{found:.2f} s' for found in seen) or '(not told)'}."
    )
    print(text)
    if asked.docs:
        rewrite("rollout", text)


if __name__ == "__main__":
    main()
