"""Child processes of an activity that read what a snapshot holds: confined, without credentials, never orphans.

Begin with `run_child`, for the worker; the child calls `begin_child` and `confine_child` before it reads anything.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import structlog

from ipnext.errors import EXIT_FAILURE, IPnextError
from ipnext.infra.process.parent_death import PR_SET_PDEATHSIG
from ipnext.process.inherited_environment import inherited_environment
from serving.confinement.landlock import Confinement, confine
from serving.confinement.privileges import drop_capabilities

POLL_SECONDS: Final = 0.1
"""Between two heartbeats: the delay after which a cancelled activity ends."""
NICENESS: Final = 5
FIRST_TO_GO: Final = b"1000"
"""`oom_score_adj`: the kernel ends this process before the worker."""


@dataclass(frozen=True, slots=True)
class ChildFiles:
    """Files of a child's standard streams."""

    answer: Path
    errors: Path
    job: Path | None = None
    """Its standard input; None: empty."""


def run_child(
    command: Sequence[str], files: ChildFiles, beat: Callable[[float], None], *, environment: Mapping[str, str]
) -> int:
    """Run a process and return its exit status. It has ended when this returns or raises, and its children are killed.

    They are killed by their process group, which a confined child can't leave.

    `beat` is called with the seconds since the start; an error that it raises ends the process.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as streams:
        job: int | IO[bytes] = subprocess.DEVNULL if files.job is None else streams.enter_context(files.job.open("rb"))
        answer, errors = (streams.enter_context(file.open("wb")) for file in (files.answer, files.errors))
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=job, stdout=answer, stderr=errors, start_new_session=True, env=environment
        )
    try:
        while (status := process.poll()) is None:
            beat(time.monotonic() - started)
            time.sleep(POLL_SECONDS)
        return status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def child_environment(own: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables of a child: listed ones of the worker, without its credentials, and its `own`."""
    return {"OMP_NUM_THREADS": "1", **inherited_environment(os.environ), **own}


def begin_child(parent: int) -> None:
    """Tie this process to its parent, which has this id, and make it the first to end if memory is short."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(EXIT_FAILURE)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(FIRST_TO_GO)


def confine_child(
    mode: Confinement, *, readable: Iterable[Path] = (), writable: Iterable[Path] = (), runs_programs: bool = False
) -> None:
    """Confine this process to these paths and its code. It exits with an error if that is required and can't be.

    `runs_programs`: see `serving.confinement.landlock.confine`.
    """
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the answer
    if mode is not Confinement.OFF:
        drop_capabilities()
    try:
        confine(mode, readable=readable, writable=writable, runs_programs=runs_programs, keeps_group=True)
    except IPnextError as error:
        sys.exit(f"error: {error.message}")
