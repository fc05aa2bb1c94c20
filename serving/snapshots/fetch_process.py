"""Fetches snapshots in a process of its own, so that requests never wait for the interpreter while bytes are hashed.

A host starts one: `python -m serving.snapshots.fetch_process --artifacts URI`. It reads a line of JSON for each fetch
from standard input, answers with a line on standard output, and ends with its host.
"""

import argparse
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol

from setproctitle import setproctitle

from ipnext.artifacts.disk_reserve import RESERVE_BYTES
from ipnext.artifacts.stores.locations import open_store
from ipnext.errors import Forbidden, IPnextError, LoadFailed, Unavailable
from ipnext.process.store_environment import read_store_environment
from serving.confinement.privileges import drop_capabilities
from serving.snapshots.fetch_starter import FetchingKeeper, FetchProcess, Logs, Reaches

_NICENESS: Final = 10
"""Processes that answer requests have priority."""


class Fetcher(Protocol):
    """The part of an artifact store that a host uses."""

    def fetch(self, uri: str, directory: Path) -> Path:
        """Fetch a snapshot; as `ArtifactStore.fetch`."""


class FetchingProcess:
    """A Fetcher that runs in another process, one fetch at a time. Thread-safe."""

    def __init__(
        self,
        artifacts: str,
        *,
        s3_endpoint_url: str | None = None,
        into: Path | None = None,
        disk_reserve_bytes: int = 0,
        store_environment: Path | None = None,
    ) -> None:
        """`into`: the only directory that it fetches into, whatever the request; None: any.

        `disk_reserve_bytes`: free space that it leaves on the disk. `store_environment`: file with variables for the
        store's client, such as credentials; None: those of this process.
        """
        endpoint = ["--s3-endpoint-url", s3_endpoint_url] if s3_endpoint_url else []
        self._command = [sys.executable, "-m", "serving.snapshots.fetch_process", "--artifacts", artifacts, *endpoint]
        self._command += [] if into is None else ["--into", str(into)]
        self._command += ["--disk-reserve-bytes", str(disk_reserve_bytes)]
        self._command += [] if store_environment is None else ["--store-environment", str(store_environment)]
        self._lock = threading.Lock()
        self._keeper: FetchingKeeper | None = None
        self._process: subprocess.Popen[str] | FetchProcess | None = None

    def start(self) -> None:
        """Start the process, so that the first fetch need not wait for it."""
        if self._keeper is not None:
            self._process = self._keeper.start()
            return
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)  # noqa: S603  # our own command

    def fork(
        self,
        *,
        logs: Logs | None = None,
        reaches: Reaches | None = None,
        at_end: Callable[[], object] = lambda: None,
    ) -> FetchingKeeper:
        """Start the process by a fork, in a few milliseconds, so that a confined process can start later ones.

        Only before this process has other threads, sockets or an event loop. The arguments: see FetchingKeeper.
        """
        self._keeper = FetchingKeeper(partial(_run, self._command), logs=logs, reaches=reaches, at_end=at_end)
        self.start()
        return self._keeper

    def fetch(self, uri: str, directory: Path) -> Path:
        """Fetch a snapshot; as the store.

        Unavailable if the process ended during the fetch; the next fetch starts another one.
        """
        with self._lock:
            if self._process is None:
                self.start()
            answer = self._ask({"uri": uri, "directory": str(directory)})
        if not answer:
            msg = f"the process that fetches {uri} ended; its last output is in the host's log"
            raise Unavailable(msg)
        told = json.loads(answer)
        if "directory" in told:
            return Path(told["directory"])
        raise _kinds().get(told["code"], LoadFailed)(told["message"])

    def close(self) -> None:
        """Kill the process, whatever it does, and the keeper that could start another one."""
        self._end()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # unread data is dropped
                        stream.close()

    def _ask(self, question: dict[str, str]) -> str:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return ""
        answer = ""
        with suppress(OSError, ValueError):  # it has ended, or is closed from another thread
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            self._end()
        return answer


def _run(command: Sequence[str]) -> None:
    """Run this module's `main` in a fork, which has imported it already."""
    setproctitle(" ".join(command))
    try:
        main(command[3:])
    except BaseException:  # noqa: BLE001  # the process edge: the frames above belong to the parent
        traceback.print_exc()


def _kinds() -> dict[str, type[IPnextError]]:
    def tree(kind: type[IPnextError]) -> Iterator[type[IPnextError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    return {kind.code: kind for kind in tree(IPnextError)}


def _answer(arguments: argparse.Namespace, line: str, answers: IO[str]) -> None:
    """Fetch once and report the outcome."""
    try:
        question = json.loads(line)
        _check_directory(arguments.into, Path(question["directory"]))
        _let_group_read(Path(question["directory"]))
        store = open_store(
            arguments.artifacts,
            endpoint_url=arguments.s3_endpoint_url,
            reserve_bytes=arguments.disk_reserve_bytes,
        )
        told = {"directory": str(store.fetch(question["uri"], Path(question["directory"])))}
    except IPnextError as error:
        told = {"code": error.code, "message": error.message}
    except Exception as error:  # noqa: BLE001  # the process edge: reported to the host, which judges
        told = {"code": LoadFailed.code, "message": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(told) + "\n")
    answers.flush()


def _check_directory(allowed: Path | None, asked: Path) -> None:
    """Raise Forbidden unless it is the directory that this process fetches into.

    The requesting host may be compromised.
    """
    if allowed is not None and asked != allowed:
        msg = f"directory: {str(asked)!r} is not the cache of this host; allowed: {str(allowed)!r}"
        raise Forbidden(msg)


def _let_group_read(directory: Path) -> None:
    """Write files that the cache's group may read, if the agent opened the cache to it.

    It is the group of hosts with a separate user.
    """
    if directory.is_dir() and directory.stat().st_mode & stat.S_ISGID:
        os.umask(0o027)


def add_disk_reserve(parser: argparse.ArgumentParser) -> None:
    """Add the option of the free space that fetches leave."""
    parser.add_argument(
        "--disk-reserve-bytes",
        type=int,
        default=RESERVE_BYTES,
        help="free space that fetched snapshots leave on the disk",
    )


def add_store_environment(parser: argparse.ArgumentParser) -> None:
    """Add the option of the variables for the store's client."""
    parser.add_argument(
        "--store-environment",
        type=Path,
        default=None,
        metavar="FILE",
        help="JSON file of variables by which the process that fetches reaches the artifact store, such as credentials",
    )


def _answers() -> IO[str]:
    """Reserve standard output for answers; all other output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch on request until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m serving.snapshots.fetch_process", description=__doc__)
    parser.add_argument("--artifacts", required=True, help="uri of the artifact store: file:///... or s3://...")
    parser.add_argument("--s3-endpoint-url", default=None)
    parser.add_argument("--into", type=Path, default=None, help="the only directory that it fetches into")
    add_disk_reserve(parser)
    add_store_environment(parser)
    parsed = parser.parse_args(arguments)
    if parsed.store_environment is not None:
        os.environ.update(read_store_environment(parsed.store_environment))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the host decides when to end
    os.nice(_NICENESS)
    drop_capabilities()
    answers = _answers()
    pool = ThreadPoolExecutor(1)
    for line in sys.stdin:
        pool.submit(_answer, parsed, line, answers)
    os._exit(0)  # the host has gone: no caller waits for the fetch


if __name__ == "__main__":
    main()
