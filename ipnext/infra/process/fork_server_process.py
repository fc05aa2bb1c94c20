"""The fork server process: has imported some programs, runs none, and forks one on request.

A region's supervisor starts it: `python -m ipnext.infra.process.fork_server_process MODULE...`. Standard input
is a Unix socket of whole messages. A message requests one process: `{"id", "command", "arguments", "module"}` and the
descriptor of its log. The answer is `{"id", "pid"}`, or `{"id", "refused"}` with a reason; the first
message of all is `{"ready": true}`.

Modules are named as for `python -m`: the name of a package means its `__main__`. Each has `main(arguments)`. Its
`preload()`, if it has one, makes the imports that it would make later.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from setproctitle import setproctitle

from ipnext.infra.process.forking import explain_threads, leave_server, take_control_socket
from ipnext.infra.process.parent_death import PR_SET_PDEATHSIG
from ipnext.process.garbage_collection import collect_after_imports

MESSAGE_BYTES = 2**16
GO = b"1"
Program = Callable[[], object]


def main() -> Program | None:
    """Serve until the supervisor has ended. In a forked process: return the program to run, once it may run."""
    modules, supervisor = sys.argv[1:], os.getppid()
    with take_control_socket() as control:
        with collect_after_imports():  # a garbage collection in a fork neither reads nor writes the shared objects
            for name in modules:
                getattr(_program(name), "preload", lambda: None)()
        control.send(json.dumps({"ready": True}).encode())
        while True:
            message, descriptors, *_ = socket.recv_fds(control, MESSAGE_BYTES, 1)
            if not message:
                return None
            asked, [log] = json.loads(message), descriptors
            if reason := _refusal(asked["module"], modules):
                control.send(json.dumps({"id": asked["id"], "refused": reason}).encode())
            elif _fork_child(control, asked["id"]):
                control.detach()
                _settle(supervisor, log, asked["command"])
                sys.argv[1:] = asked["arguments"]
                return partial(_program(asked["module"]).main, asked["arguments"])
            os.close(log)


def _program(name: str) -> Any:
    """Return the module that `python -m` runs by this name."""
    module = import_module(name)
    return import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def _refusal(module: str, modules: Sequence[str]) -> str | None:
    if module not in modules:
        return f"{module} is not imported"
    return explain_threads()


def _fork_child(control: socket.socket, number: int) -> bool:
    """Fork a process that belongs to the supervisor, and report its id. True in that process, once it may continue.

    It is a grandchild whose parent ends, so the kernel gives it to the supervisor. It continues only after the
    supervisor has its id: if this process ends before, it ends too, and the supervisor may start another one in its
    place.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    told, tell = os.pipe()
    gate, opened = os.pipe()
    middle = os.fork()
    if middle == 0:
        child = os.fork()
        if child:
            os.write(tell, str(child).encode())
            os._exit(0)
        for descriptor in (told, tell, opened):
            os.close(descriptor)
        os.setsid()
        if os.read(gate, 1) != GO:
            os._exit(1)
        return True
    for descriptor in (tell, gate):
        os.close(descriptor)
    os.waitpid(middle, 0)  # from now on the supervisor is the parent
    pid = int(os.read(told, 32))
    control.send(json.dumps({"id": number, "pid": pid}).encode())
    with suppress(BrokenPipeError):  # it was killed at once: the supervisor observes its end
        os.write(opened, GO)
    for descriptor in (told, opened):
        os.close(descriptor)
    return False


def _settle(supervisor: int, log: int, command: str) -> None:
    """Become a process like a fresh one: tied to the supervisor, with its output, name and random state."""
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != supervisor:
        os._exit(1)
    os.dup2(log, 1)
    os.dup2(log, 2)
    leave_server()
    setproctitle(command)


if __name__ == "__main__":
    program = main()
    sys.exit(program() if program else 0)  # type: ignore[arg-type]
