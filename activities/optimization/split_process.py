"""Splits a snapshot by a policy: runs `ipnext split` in a separate process, so that the worker never imports torch.

Called by the optimization activity. The process dies with its parent, and is killed when the activity is cancelled.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ipnext.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK
from ipnext.infra.tether import PR_SET_PDEATHSIG
from ipnext.model.split import SplitPolicy
from ipnext.model.status import Reason
from serving.splitting.report import SplitReport

POLL_SECONDS = 0.1
NICENESS = 5
LEAST_MEMORY_BYTES = 8 << 30
MEMORY_SHARE = 6
"""Memory that a cut may take: so many bytes, and so many for each byte of the snapshot. It runs what a stranger exported."""
FIRST_TO_GO = b"1000"
"""`oom_score_adj`: the kernel ends this process before the worker."""
LAST_WORDS = 600
"""Characters of a failed process's errors that are reported."""

REPORT_FILE = "split.json"

Beat = Callable[[str], None]
Cutter = Callable[[Path, SplitPolicy, Path, Beat], SplitReport]
"""Splits the snapshot of a directory, and fills another with a snapshot for each segment. Raises CutRefused or CutEnded."""


class CutRefused(Exception):
    """The policy does not fit the model, or the segments do not reproduce its answers; a retry would not help."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class CutEnded(RuntimeError):
    """The process ended without an answer: killed, or out of memory."""


def cut_in_process(snapshot: Path, policy: SplitPolicy, out: Path, beat: Beat) -> SplitReport:
    """Split in a child process; see Cutter. Every bit is compared before anything is written; scratch files are beside `out`."""
    written = out.parent / "policy.yaml"
    written.write_text(policy.model_dump_json(by_alias=True), encoding="utf-8")
    split = ["split", str(snapshot), "--policy", str(written), "--verify", "--out", str(out), "-o", "json"]
    limit = LEAST_MEMORY_BYTES + MEMORY_SHARE * sum(file.stat().st_size for file in snapshot.rglob("*"))
    process = [sys.executable, "-m", "activities.optimization.split_process", str(os.getpid()), str(limit)]
    answer, errors = out.parent / "answer.json", out.parent / "errors.txt"
    status = _run([*process, *split], answer, errors, beat)
    if status != EXIT_OK:
        raise _failure(status, answer, errors.read_text("utf-8", "replace").strip())
    return SplitReport.model_validate_json((out / REPORT_FILE).read_bytes())


def _run(command: Sequence[str], answer: Path, errors: Path, beat: Beat) -> int:
    """Run the process and return its exit status. It and all its children are gone when this returns or raises."""
    started = time.monotonic()
    with answer.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True, env=_environment()
        )
    try:
        while (status := process.poll()) is None:
            beat(f"cutting for {time.monotonic() - started:.0f} s")
            time.sleep(POLL_SECONDS)
        return status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> Mapping[str, str]:
    """Run one thread for each operation, as hosts do: the comparison is with the program that will be served."""
    return {"OMP_NUM_THREADS": "1", **os.environ}


def _failure(status: int, answer: Path, errors: str) -> Exception:
    told = errors.splitlines()[-1].removeprefix("error: ") if errors else "it said nothing"
    if status == EXIT_BAD_INPUT:
        return CutRefused(Reason.SPLIT_REFUSED, told)
    if status == EXIT_FAILURE and (differences := _differences(answer)):
        return CutRefused(Reason.SPLIT_DIFFERS, "; ".join(differences))
    if status < 0:
        return CutEnded(f"cutting was ended by {signal.Signals(-status).name}, perhaps for want of memory")
    return CutEnded(f"cutting ended with status {status}: {errors[-LAST_WORDS:] or 'it said nothing'}")


def _differences(answer: Path) -> tuple[str, ...]:
    try:
        found: Sequence[str] = json.loads(answer.read_bytes())["differences"]
    except (ValueError, KeyError):
        return ()
    return tuple(found)


def main(arguments: Sequence[str]) -> None:
    """Become `ipnext ...` within a limit of memory, and end with the parent."""
    parent, memory, *command = arguments
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(EXIT_FAILURE)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(FIRST_TO_GO)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    os.execv(sys.executable, [sys.executable, "-m", "ipnext.cli", *command])  # noqa: S606 - our own program


if __name__ == "__main__":
    main(sys.argv[1:])
