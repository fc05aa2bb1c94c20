"""Splits a snapshot by a policy: runs `ipnext split` in a separate process, so that the worker never imports torch.

Called by the optimization activity. The process dies with its parent, and is killed when the activity is cancelled.

The process runs the program of the snapshot, which a publisher exported. It confines itself as a torch host does, to
reading the snapshot and writing one directory, and has none of the worker's credentials.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import structlog

from ipnext.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK, IPnextError
from ipnext.infra.process.parent_death import PR_SET_PDEATHSIG
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.split import SplitPolicy
from ipnext.process.inherited_environment import inherited_environment
from serving.confinement.landlock import Confinement, confine
from serving.confinement.privileges import drop_capabilities
from serving.splitting.report import SplitReport

POLL_SECONDS = 0.1
NICENESS = 5
LEAST_MEMORY_BYTES = 8 << 30
MEMORY_SHARE = 6
"""Memory that a cut may take: so many bytes, and so many for each byte of the snapshot. It runs what a stranger
exported."""
FIRST_TO_GO = b"1000"
"""`oom_score_adj`: the kernel ends this process before the worker."""
LAST_WORDS = 600
"""Characters of a failed process's errors that are reported."""

LARGEST_OUTPUT_BYTES = 64 << 20
"""Limit of what is read of the process's report, answer and errors: a snapshot may have taken it over."""

REPORT_FILE = "split.json"

Beat = Callable[[str], None]
Cutter = Callable[[Path, SplitPolicy, Path, Beat], SplitReport]
"""Splits the snapshot of a directory, and fills another with a snapshot for each segment. Raises CutRefused or
CutEnded."""


class CutRefused(Exception):
    """The policy does not fit the model, or the segments do not reproduce its answers; a retry would not help."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class CutEnded(RuntimeError):
    """The process ended without an answer: killed, or out of memory."""


def cut_in_process(
    snapshot: Path, policy: SplitPolicy, out: Path, beat: Beat, *, confinement: Confinement = Confinement.AVAILABLE
) -> SplitReport:
    """Split in a child process; see Cutter. Every bit is compared before anything is written.

    Scratch files are beside `out`; of them the process writes only those in `cut`.
    """
    workspace = out.parent / "cut"
    workspace.mkdir()
    written = workspace / "policy.yaml"
    written.write_text(policy.model_dump_json(by_alias=True), encoding="utf-8")
    draft = workspace / out.name
    split = ["split", str(snapshot), "--policy", str(written), "--verify", "--out", str(draft), "-o", "json"]
    limit = LEAST_MEMORY_BYTES + MEMORY_SHARE * sum(file.stat().st_size for file in snapshot.rglob("*"))
    rights = [str(os.getpid()), str(limit), confinement, str(snapshot), str(workspace)]
    process = [sys.executable, "-m", "activities.optimization.split_process", *rights]
    answer, errors = out.parent / "answer.json", out.parent / "errors.txt"
    status = _run([*process, *split], answer, errors, beat, environment=_environment(workspace))
    if status != EXIT_OK:
        raise _failure(status, answer, _read(errors).decode("utf-8", "replace").strip())
    draft.rename(out)  # out of reach of the process, if it left another one behind
    _refuse_links(out)
    return SplitReport.model_validate_json(_read(out / REPORT_FILE))


def _refuse_links(directory: Path) -> None:
    """Raise CutEnded if a process that was taken over has left a link, which would lead the upload elsewhere."""
    for place in (directory, *directory.rglob("*")):
        if not stat.S_ISDIR(mode := place.lstat().st_mode) and not stat.S_ISREG(mode):
            msg = f"cutting left {place.name!r}, which is neither a file nor a directory"
            raise CutEnded(msg)


def _read(file: Path) -> bytes:
    """Return the content of a file that the process wrote. CutEnded if it is too large."""
    with file.open("rb") as stream:
        content = stream.read(LARGEST_OUTPUT_BYTES + 1)
    if len(content) > LARGEST_OUTPUT_BYTES:
        msg = f"cutting wrote {file.name} of more than {LARGEST_OUTPUT_BYTES} bytes"
        raise CutEnded(msg)
    return content


def _run(command: Sequence[str], answer: Path, errors: Path, beat: Beat, *, environment: Mapping[str, str]) -> int:
    """Run the process and return its exit status. It and all its children are gone when this returns or raises."""
    started = time.monotonic()
    with answer.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True, env=environment
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


def _environment(workspace: Path) -> Mapping[str, str]:
    """Return listed variables only.

    One thread for each operation, as in hosts: the program is compared as it will be served.
    """
    own = {name: str(workspace) for name in ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR")}
    return {"OMP_NUM_THREADS": "1", **inherited_environment(os.environ), **own}


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
        found: Sequence[str] = json.loads(_read(answer))["differences"]
    except (ValueError, KeyError):
        return ()
    return tuple(found)


def main(arguments: Sequence[str]) -> None:
    """Become `ipnext ...` within a limit of memory, confined, and end with the parent."""
    parent, memory, confinement, snapshot, workspace, *command = arguments
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(EXIT_FAILURE)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(FIRST_TO_GO)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    _confine(Confinement(confinement), Path(snapshot), Path(workspace))
    sys.argv = ["ipnext", *command]
    import_module("ipnext.cli.app").main()  # after the confinement, which starts no program


def _confine(mode: Confinement, snapshot: Path, workspace: Path) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the report
    if mode is not Confinement.OFF:
        drop_capabilities()
    try:
        confine(mode, readable=[snapshot], writable=[workspace])
    except IPnextError as error:
        sys.exit(f"error: {error.message}")


if __name__ == "__main__":
    main(sys.argv[1:])
