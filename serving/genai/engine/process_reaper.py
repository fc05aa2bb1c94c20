"""Runs one command and makes sure that nothing of it outlives the host: `python process_reaper.py [--ruleset FD] [--remove DIR] COMMAND...`.

The host holds the other end of standard input. When that ends, however the host ended, everything that the command has
started is killed, also what put itself into another session. Where the keeper itself is killed, a guard that is nobody's child
kills its process group. Only the standard library, so that it starts at once.

The command is confined by the Landlock ruleset of descriptor FD, which this process inherits and is not confined by itself. The directory
DIR is removed if the host ends before the command.
"""

import ctypes
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
SYS_LANDLOCK_RESTRICT_SELF = 446
_LOOK_SECONDS = 0.02


def main(arguments: list[str]) -> None:
    """Run the command to its end and pass its status on."""
    ruleset, arguments = _option("--ruleset", arguments)
    remove, command = _option("--remove", arguments)
    if os.getpgrp() != os.getpid():
        os.setsid()  # the group that is ended must be its own
    _guard()
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # descendants whose parent ends become children of this process
    keeper = os.getpid()
    lifeline = os.dup(0)
    child = os.fork()
    if child == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)
        os.close(lifeline)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        program = shutil.which(command[0]) or command[0]  # confined it can't import what os.execvp does
        try:
            if ruleset:
                _confine(int(ruleset))
            os.execv(program, command)  # noqa: S606 - the host's own command
        except OSError as error:
            os.write(2, f"{command[0]} cannot be run: {error.strerror}\n".encode())
            os._exit(127)
    if ruleset:
        os.close(int(ruleset))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: _send(child, got))
    threading.Thread(target=_watch, args=(lifeline, remove), daemon=True).start()
    status = _wait(child)
    end_descendants()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        if -code not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(keeper, -code)
    os._exit(code if code >= 0 else 1)


def end_descendants() -> None:
    """SIGKILL for all that this process's children have started, again until there is nothing left."""
    while True:
        for pid in _descendants(os.getpid()):
            _send(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_LOOK_SECONDS)  # what lost its parent during the look is seen by the next one


def _guard() -> None:
    """Start a process outside of every tree and group of ours that sees this one end, and then ends its group."""
    group = os.getpgrp()
    seen, held = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:  # its parent ends at once: no walk over the host's tree finds it
            os.setsid()
            os.dup2(seen, 3)
            nothing = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(nothing, standard)
            os.closerange(4, 1024)
            os.read(3, 1)
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        os._exit(0)
    os.wait()
    os.close(seen)
    os.set_inheritable(held, False)  # the command must not hold it


def _option(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The value of an option that comes first, empty if it is not there, and the rest."""
    return (arguments[1], arguments[2:]) if arguments[0] == name else ("", arguments)


def _confine(ruleset: int) -> None:
    """OSError if the kernel refuses."""
    library = ctypes.CDLL(None, use_errno=True)
    if (
        library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        or library.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"not confined: {os.strerror(number)}")
    os.close(ruleset)


def _watch(lifeline: int, remove: str) -> None:
    while os.read(lifeline, 1):
        pass
    for pid in _descendants(os.getpid()):
        _send(pid, signal.SIGKILL)
    end_descendants()
    if remove:
        shutil.rmtree(remove, ignore_errors=True)
    os._exit(1)


def _wait(child: int) -> int:
    """The child's status; orphans that came here are reaped on the way."""
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:  # the other thread was quicker, and is about to end this process
            return signal.SIGKILL
        if pid == child:
            return status


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all that is wanted
        if entry.isdigit():
            with suppress(OSError, IndexError, ValueError), open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123 - no further import
                children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(entry))
    found, waiting = [], [root]
    while waiting:
        mine = children.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    main(sys.argv[1:])
