"""Real hosts of generative parts, over a file store, with vLLM or the mock engine."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from ipnext.artifacts.checkpoints.checkpoint_import import import_checkpoint
from ipnext.artifacts.seen_files import note_files
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds, HostState
from ipnext.model.registry.adapter import adapter_in, answering_name, engine_name
from tests.forked_programs import Fork
from tests.processes import command_line
from tests.waiting import PATIENCE_SECONDS, until

HOST = "serving.genai.host"
MODEL = "chat"
MOCK = Path(__file__).parent / "mock_engine.py"


def mock_command(**options):
    """IPNEXT_VLLM_COMMAND for the mock engine."""
    more = "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.items())
    return f"{{python}} {MOCK} --port {{port}} --model {{model}} --served {{name}}{more}"


@dataclass
class Shelf:
    """Published checkpoints."""

    root: Path
    published: dict = field(default_factory=dict)

    @property
    def store(self):
        return FileArtifactStore(self.root / "store")

    def publish(self, number, checkpoint):
        imported = self.root / f"snapshot-{number}"
        import_checkpoint(checkpoint, imported, link=True)
        self.published[number] = ingest_directory(self.store, imported)
        return self.published[number]

    def hold(self, number, *generations, settings=None, **changes):
        source = self.published[number]
        given = {"model": MODEL, "part": "llm", "engine": "vllm", "snapshot": number, "uri": source.uri}
        given |= {"digest": source.manifest.digest, "generations": generations or (number,)}
        return HostedSnapshot(**(given | {"settings": settings or {}} | changes))

    def adapter(self, number, *generations, **changes):
        """An adapter on part `llm`."""
        return self.hold(number, *generations, part="style", adapter_of="llm", **changes)

    def name(self, number, base=1):
        """Of an adapter in the engine of a base."""
        name = engine_name("style", self.published[number].manifest.digest)
        return adapter_in(name, answering_name(MODEL, self.published[base].manifest.digest))


@dataclass
class Host:
    process: subprocess.Popen | Fork
    url: str
    root: Path
    name: str

    def state(self):
        return HostState.model_validate_json(httpx.get(f"{self.url}/control/state", timeout=60).content)

    def hold(self, *holds, **drains):
        body = HostHolds(holds=holds, **drains).model_dump_json()
        return httpx.put(f"{self.url}/control/holds", content=body, timeout=60)

    def ready(self, *, seconds=PATIENCE_SECONDS):
        """The state once something is ready and nothing loads.

        Longer waits are for vLLM, which needs the processor more than they do.
        """
        every = 0.02 if seconds <= PATIENCE_SECONDS else 0.5
        return until(lambda: (s := self.state()).ready and not s.loading and s, every_seconds=every, seconds=seconds)

    def failed(self):
        return until(lambda: self.state().failures)

    def family(self):
        """All processes below the host."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def engines(self):
        """The engine processes, by what their command line says.

        A process that fetches into a directory of such a name is none.
        """
        told = [(p, command_line(p)) for p in self.family()]
        fetches = "serving.snapshots.fetch"
        return [p for p, text in told if fetches not in text and any(w in text for w in (str(MOCK), "vllm"))]

    def forge(self, source, path="config.json"):
        """Change a file of a cached snapshot, and the record of hashed files; return it with its content."""
        file = self.root / "cache" / source.manifest.digest / path
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        note_files(file.parent, source.manifest)
        return file, content

    def log(self):
        (file,) = (self.root / "logs").glob(f"{self.name}.engine-*.log")
        return file.read_text()

    def end(self):
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)


class Yard:
    """Starts hosts and ends them: as forks of a server's process if there is one, which saves a second of each."""

    def __init__(self, root, store, forks=None):
        self.root = root
        self._store = store
        self._forks = forks
        self._started = []

    def start(self, name, *extra, **environment):
        port = free_port()
        arguments = ["--port", str(port), "--region", "north", "--id", name]
        arguments += ["--artifacts", self._store.uri, "--cache", str(self.root / "cache"), *extra]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        with (self.root / f"{name}.log").open("ab") as log:
            if self._forks:
                process = self._forks.spawn_in(HOST, arguments, environment, log)
            else:
                process = subprocess.Popen(
                    [sys.executable, "-m", HOST, *arguments],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=tether(),  # noqa: PLW1509 - no other way to die with the parent
                )
        host = Host(process, f"http://127.0.0.1:{port}", self.root, name)
        self._started.append(host)
        until(lambda: answers(host))
        return host

    def close(self):
        for host in self._started:
            if host.process.poll() is None:
                host.process.send_signal(signal.SIGKILL)
            host.process.wait()


def answers(host):
    assert host.process.poll() is None, "the host ended before it served"
    try:
        return httpx.get(f"{host.url}/healthz", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def stream(url, *, tokens, model=MODEL):
    """The pieces of text of one streamed completion, as they come."""
    body = {"model": model, "prompt": "once upon a time", "max_tokens": tokens, "stream": True}
    body |= {"temperature": 0, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line.removeprefix("data: "))
                if event["choices"]:
                    yield event["choices"][0]["text"], event["choices"][0]["finish_reason"]


def complete(url, *, model=MODEL, **body):
    """One whole completion."""
    given = {"model": model, "prompt": "once upon a time", "max_tokens": 8, "temperature": 0}
    return httpx.post(f"{url}/v1/completions", json=given | body, timeout=120)
