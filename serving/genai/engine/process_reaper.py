"""Runs one command so that nothing of it outlives the host.

`python process_reaper.py [--ruleset FD] [--remove DIR] COMMAND...`. The host has the other end of standard input. When
that closes, however the host ended, the reaper kills all descendants of the command, including those in other sessions.
If the reaper itself is killed, a guard process outside its tree kills its process group. Standard library only, so that
it starts at once.

The command is confined by the Landlock ruleset of descriptor FD, which this process inherits but is not confined by. If
the host ends before the command, the directory DIR is removed.
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
    """Run the command until it ends and exit with its status."""
    ruleset, arguments = _option("--ruleset", arguments)
    remove, command = _option("--remove", arguments)
    if os.getpgrp() != os.getpid():
        os.setsid()  # the group that is killed must be its own
    _guard()
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # descendants whose parent ends become children of this process
    keeper = os.getpid()
    lifeline = os.dup(0)
    handled = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)  # one that arrives before the handlers would end this process
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)
        os.close(lifeline)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        program = shutil.which(command[0]) or command[0]  # os.execvp's imports fail once confined
        try:
            if ruleset:
                _confine(int(ruleset))
            os.execv(program, command)  # noqa: S606 - the host's own command
        except OSError as error:
            os.write(2, f"{command[0]} cannot be run: {error.strerror}\n".encode())
            os._exit(127)
    if ruleset:
        os.close(int(ruleset))
    for number in handled:
        signal.signal(number, lambda got, _: _send(child, got))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
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
    """Kill all descendants of this process with SIGKILL, and repeat until none is left."""
    while True:
        for pid in _descendants(os.getpid()):
            _send(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_LOOK_SECONDS)  # the next pass sees processes that lost their parent during this one


def _guard() -> None:
    """Start a process outside our process tree and group that kills our group when this process ends."""
    group = os.getpgrp()
    seen, held = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:  # its parent ends at once, so it is not in the host's process tree
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
    os.set_inheritable(held, False)  # the command must not inherit it


def _option(name: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Return the value of a leading option, empty if it is absent, and the rest."""
    return (arguments[1], arguments[2:]) if arguments[0] == name else ("", arguments)


def _confine(ruleset: int) -> None:
    """Confine this process. OSError if the kernel refuses."""
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
    """Return the child's status; reap orphans adopted in the meantime."""
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
