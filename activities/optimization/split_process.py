"""Splits a snapshot by a policy: runs `ipnext split` in a separate process, so that the worker never imports torch.

Called by the optimization activity. The process dies with its parent, and is killed when the activity is cancelled.

The process runs the program of the snapshot, which a publisher exported. It confines itself as a torch host does, to
reading the snapshot and writing one directory, and has none of the worker's credentials.
"""

import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from activities.runtime.child_process import ChildFiles, begin_child, child_environment, confine_child, run_child
from ipnext.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.split import SplitPolicy
from serving.confinement.landlock import Confinement
from serving.splitting.report import SplitReport

LEAST_MEMORY_BYTES = 8 << 30
MEMORY_SHARE = 6
"""Memory that a cut may take: so many bytes, and so many for each byte of the snapshot. It runs what a stranger
exported."""
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
    own = {name: str(workspace) for name in ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR")}
    status = run_child(
        [*process, *split],
        ChildFiles(answer, errors),
        lambda seconds: beat(f"cutting for {seconds:.0f} s"),
        environment=child_environment(own),  # one thread for each operation, as in hosts: compared as it will be served
    )
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
    begin_child(int(parent))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    confine_child(Confinement(confinement), readable=[Path(snapshot)], writable=[Path(workspace)])
    sys.argv = ["ipnext", *command]
    import_module("ipnext.cli.app").main()  # after the confinement, which starts no program


if __name__ == "__main__":
    main(sys.argv[1:])
