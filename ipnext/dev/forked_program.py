"""Programs that this process has imported.

Each is a fork of it instead of an interpreter that imports the same modules again. `ipnext dev` starts an API, a proxy,
workers and an agent for each region; they import mostly the same modules, which takes seconds of CPU time in each.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import IO, NoReturn

import structlog
from setproctitle import getproctitle, setproctitle

from ipnext.process.garbage_collection import collect_after_imports

STDERR = 2


def locate_command_line() -> bool:
    """Return whether forks can get command lines of their own. Call it before the environment of this process changes.

    setproctitle finds the command line in front of the environment's first variable, once, on the first call.
    """
    return bool(getproctitle())


def preload(modules: Sequence[str]) -> None:
    """Import modules, and keep the garbage collector of every fork from traversing the shared objects."""
    with collect_after_imports():
        for name in modules:
            import_module(name)


def program_of(command: Sequence[str]) -> str | None:
    """Return the module of a command `python -m MODULE ...` that can run as a fork.

    The module is imported, the fork can get the command line, and no other thread runs: a fork has only the thread that
    forks, and locks of other threads would stay locked in it.
    """
    match list(command):
        case [sys.executable, "-m", module, *_] if _entry(module) in sys.modules:
            return module if locate_command_line() and _threads() == 1 else None
    return None


class ForkedProgram:
    """A fork that runs a module's `main`, with the methods of `subprocess.Popen` that a supervisor needs."""

    def __init__(
        self,
        module: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: IO[bytes],
        prepare: Callable[[], None],
    ) -> None:
        """Start the module's `main` as a process with this command line, in a new session; `prepare` runs first in it.

        Its standard output and error are the log, and nothing else is open.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, module, environment, log.fileno(), prepare)

    def poll(self) -> int | None:
        """Return the exit status once it has ended; below zero the signal that ended it."""
        self._look(os.WNOHANG)
        return self.returncode

    def wait(self) -> int:
        """Block until it has ended; return the exit status."""
        self._look(0)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, if it has not ended."""
        self.send_signal(signal.SIGKILL)

    def _look(self, options: int) -> None:
        if self.returncode is not None:
            return
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:  # another caller has reaped it; subprocess answers the same
            self.returncode = 0
            return
        if pid:
            self.returncode = os.waitstatus_to_exitcode(status)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are all that is wanted


def _entry(module: str) -> str:
    """Return the module with `main`: for a package its `__main__`."""
    found = sys.modules.get(module)
    return f"{module}.__main__" if found is not None and hasattr(found, "__path__") else module


def _become(
    command: Sequence[str], module: str, environment: Mapping[str, str], log: int, prepare: Callable[[], None]
) -> NoReturn:
    """In the fork: become a process like a fresh one, run, and end.

    Neither the frames nor the exit handlers of the forking process run: they belong to that process.
    """
    status = 1
    try:
        os.setsid()
        prepare()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _redirect(log)
        logging.root.handlers.clear()
        structlog.reset_defaults()
        os.environ.update(environment)
        sys.argv[:] = command[2:]
        setproctitle(" ".join(command))
        status = sys.modules[_entry(module)].main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _redirect(log: int) -> None:
    """Make standard input empty, redirect standard output and error to the log, and close all other descriptors."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor in (1, STDERR):
        os.dup2(log, descriptor)
    os.closerange(3, 1 + max(int(name) for name in os.listdir("/proc/self/fd")))  # noqa: PTH208 - names are all that is wanted
