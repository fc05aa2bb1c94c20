"""The supervisor of a region: parent of its processes, started by the first agent, and alive when an agent dies.

`python -m ipnext.infra.supervisor_process --state DIR`; standard input is the socket that it listens on. An
agent connects and sends JSON lines (`ipnext.infra.agent.supervisor_client`). The supervisor starts and signals
processes, tells their ends, and keeps one note for each, which the next agent reads.

If its agent disconnects, the supervisor waits for the next one: as long as the owner lives, or if there is no owner for
the time that the agent's settings say. Then it ends its processes and itself. If the owner ends, so do they, at once.
If the supervisor ends, the kernel kills them.
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from ipnext.components.caller_proof import check_proof, keep_proof
from ipnext.components.sockets import check_peer
from ipnext.errors import Forbidden
from ipnext.infra.process.atomic_file import replace_file
from ipnext.infra.process.fork_server import ForkServer
from ipnext.infra.process.identity import ProcessIdentity, identify, open_process
from ipnext.infra.process.message_link import Message, MessageLink, from_object
from ipnext.infra.process.parent_death import PR_SET_PDEATHSIG
from ipnext.infra.process.spawn import Spawn, StartedProcess, fresh

PROTOCOL: Final = 1
"""An agent of another protocol cannot adopt: it ends this supervisor and starts another one."""
FIRST_AGENT_SECONDS: Final = 60.0
"""Longest wait for the agent that has started this supervisor."""
TIE_AGAIN_SECONDS: Final = 0.05
IDENTITY_FILE: Final = "supervisor.json"
PROOF_FILE: Final = "supervisor.proof"
"""What agents send with their greeting: whoever is greeted has any program started, without confinement."""


@dataclass
class HeldProcess:
    """A running process."""

    name: str
    running: StartedProcess
    note: Mapping[str, Any]


@dataclass(frozen=True)
class ForkServerRestarts:
    """Restart settings of the fork server, from the agent."""

    backoff_first_seconds: float
    backoff_limit_seconds: float
    steady_seconds: float
    log_limit_bytes: int


class RegionSupervisor:
    """Runs the processes of one region for one agent at a time.

    Call all methods in one event loop, in the main thread.
    """

    def __init__(self, proof: str) -> None:
        """`proof` is what agents prove themselves by."""
        self._proof = proof
        self._first_parent = os.getppid()
        self._successor_seconds = 0.0
        self._grace_seconds = 5.0
        self._held: dict[int, HeldProcess] = {}
        self._last = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._greeting: set[asyncio.Task[None]] = set()
        self._agent: MessageLink | None = None
        self._owner: ProcessIdentity | None = None
        self._owner_descriptor: int | None = None
        self._waiting: asyncio.TimerHandle | None = None
        self._fork: Mapping[str, Any] = {}
        self._fork_server: ForkServer | None = None
        self._ended = asyncio.Event()
        self._owner_ended = False

    async def run(self, listener: socket.socket) -> None:
        """Serve agents until one requests the end, the owner has ended, or no agent has connected for too long."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ended.set)
        self._waiting = asyncio.get_running_loop().call_later(FIRST_AGENT_SECONDS, self._give_up)
        accepting = asyncio.create_task(self._accept(listener), name="accept agents")
        await self._ended.wait()
        accepting.cancel()
        listener.close()
        if not self._owner_ended:
            await self._end_all()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            link, _ = await loop.sock_accept(listener)
            try:
                check_peer(link)
            except Forbidden as error:
                structlog.get_logger().warning("caller refused", reason=error.message)
                link.close()
                continue
            await loop.connect_accepted_socket(lambda: MessageLink(self._take, self._lose), link)

    def _lose(self, link: MessageLink) -> None:
        if link is self._agent:
            structlog.get_logger().info("agent disconnected", processes=len(self._held))
            self._agent = None
            self._await_successor()

    def _take(self, link: MessageLink, message: Message) -> None:
        match message:
            case {"kind": "hello"}:
                self._keep(asyncio.create_task(self._greet(message, link)), self._greeting)
            case _ if link is not self._agent:
                structlog.get_logger().warning("message of a former agent ignored", kind=message.get("kind"))
            case {"kind": "start"}:
                self._keep(asyncio.create_task(self._start(message, link)), self._starting)
            case {"kind": "signal", "id": int(number), "signal": int(value)} if number in self._held:
                self._held[number].running.signal(signal.Signals(value))
            case {"kind": "note", "id": int(number), "note": note} if number in self._held:
                self._held[number].note = note
            case {"kind": "end"}:
                self._ended.set()

    @staticmethod
    def _keep(task: asyncio.Task[None], among: set[asyncio.Task[None]]) -> None:
        among.add(task)
        task.add_done_callback(among.discard)

    async def _greet(self, hello: Message, link: MessageLink) -> None:
        """Serve this agent from now on, instead of any former one, if it proves itself."""
        try:
            check_proof(self._proof, hello.get("proof"))
        except Forbidden as error:
            structlog.get_logger().warning("caller refused", reason=error.message)
            link.send({"kind": "refused", "protocol": PROTOCOL})
            link.close()
            return
        if hello["protocol"] != PROTOCOL:
            link.send({"kind": "refused", "protocol": PROTOCOL})
            return
        former, self._agent = self._agent, link
        if former is not None:
            former.close()
        if self._waiting is not None:
            self._waiting.cancel()
        self._successor_seconds, self._grace_seconds = hello["successor_seconds"], hello["grace_seconds"]
        self._follow(from_object(ProcessIdentity, hello["owner"]) if hello["owner"] else None)
        await self._prepare_forks(hello["fork"])
        await self._finish_starts()  # those that an agent requested before it died belong to this one
        processes = [
            {"id": number, "name": held.name, "pid": held.running.pid, "note": held.note}
            for number, held in self._held.items()
        ]
        link.send({"kind": "welcome", "pid": os.getpid(), "processes": processes})

    async def _start(self, message: Message, link: MessageLink) -> None:
        asked = message["number"]
        spawn: Spawn = fresh if self._fork_server is None else self._fork_server.spawn
        try:
            with Path(message["log"]).open("ab") as log:  # noqa: ASYNC230 - a local file
                running = await spawn(message["command"], message["environment"], log)
        except (OSError, ValueError) as error:
            link.send({"kind": "failed", "number": asked, "reason": str(error)})
            return
        self._last += 1
        self._held[self._last] = HeldProcess(message["name"], running, message["note"])
        link.send({"kind": "started", "number": asked, "id": self._last, "pid": running.pid})
        self._keep(asyncio.create_task(self._watch_exit(self._last, running)), self._tasks)

    async def _finish_starts(self) -> None:
        """Wait for the starts under way, none of which waits for the fork server's imports any longer."""
        if self._starting:
            if self._fork_server is not None:
                self._fork_server.hurry()
            await asyncio.wait(self._starting)

    async def _watch_exit(self, number: int, running: StartedProcess) -> None:
        status = await running.wait()
        del self._held[number]
        if self._agent is not None:
            self._agent.send({"kind": "ended", "id": number, "status": status})

    async def _prepare_forks(self, fork: Mapping[str, Any]) -> None:
        """Keep the fork server if this agent would start the same one; else replace it."""
        if fork == self._fork:
            return
        former, self._fork_server = self._fork_server, None
        if former is not None:
            await former.stop(self._grace_seconds)
        self._fork = fork
        self._fork_server = ForkServer(
            fork["modules"],
            log_file=Path(fork["log"]),
            environment=fork["environment"],
            settings=from_object(ForkServerRestarts, fork["restarts"]),
            python=fork["python"],
        )
        self._fork_server.start()

    def _follow(self, owner: ProcessIdentity | None) -> None:
        """End with this owner from now on; if there is none, only for lack of an agent."""
        if owner == self._owner:
            return
        if self._owner_descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._owner_descriptor)
            os.close(self._owner_descriptor)
        self._owner, self._owner_descriptor = owner, None
        if owner is not None:
            self._owner_descriptor = open_process(owner)
            if self._owner_descriptor is None:
                self._lose_owner()
            else:
                asyncio.get_running_loop().add_reader(self._owner_descriptor, self._lose_owner)

    def _lose_owner(self) -> None:
        structlog.get_logger().info("owner ended, all ends", owner=self._owner)
        self._owner_ended = True
        for held in self._held.values():
            held.running.signal(signal.SIGKILL)
        self._ended.set()

    def _await_successor(self) -> None:
        """Begin to wait for an agent: for the owner's life, or without an owner for the configured time."""
        if self._owner is not None:
            self._tie_to(self._owner.pid)
            return
        self._waiting = asyncio.get_running_loop().call_later(self._successor_seconds, self._give_up)

    def _tie_to(self, owner: int) -> None:
        """Have the kernel kill this process with an owner that has adopted it.

        Then a stopped supervisor ends as well.
        """
        parent = os.getppid()
        if parent == owner:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            structlog.get_logger().info("tied to the owner", owner=owner)
        elif parent == self._first_parent:  # the agent's connection ends just before the agent does
            asyncio.get_running_loop().call_later(TIE_AGAIN_SECONDS, self._tie_to, owner)

    def _give_up(self) -> None:
        structlog.get_logger().error("no agent came, all ends")
        self._ended.set()

    async def _end_all(self) -> None:
        """Send SIGTERM to all remaining processes, and SIGKILL after the grace time."""
        await self._finish_starts()
        for held in self._held.values():
            held.running.signal(signal.SIGTERM)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._grace_seconds)
        for held in self._held.values():
            held.running.signal(signal.SIGKILL)
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._fork_server is not None:
            await self._fork_server.stop(self._grace_seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a supervisor; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ipnext.infra.supervisor_process", description=__doc__)
    parser.add_argument("--state", required=True, type=Path, help="state directory of the region's agent")
    given = parser.parse_args(arguments)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    identity = identify(os.getpid())
    with suppress(OSError):
        replace_file(given.state / IDENTITY_FILE, json.dumps(identity and identity._asdict()).encode())
    asyncio.run(RegionSupervisor(keep_proof(given.state / PROOF_FILE)).run(listener))
    return 0


if __name__ == "__main__":
    sys.exit(main())
