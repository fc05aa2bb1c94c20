"""Splits a snapshot by a policy: runs `ipnext split` in a separate process (`activities.runtime.tool_process`).

Called by the optimization activity.
"""

import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from activities.runtime.tool_process import (
    Beat,
    ToolRun,
    enter,
    read_bounded,
    refuse_links,
    run_tool,
)
from ipnext.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.split import SplitPolicy
from serving.confinement.landlock import Confinement
from serving.splitting.report import SplitReport

REPORT_FILE = "split.json"

Cutter = Callable[[Path, SplitPolicy, Path, Beat], SplitReport]
"""Splits the snapshot of a directory, and fills another with a snapshot for each segment. Raises CutRefused or
ToolEnded."""


class CutRefused(Exception):
    """The policy does not fit the model, or the segments do not reproduce its answers; a retry would not help."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


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
    ran = run_tool(
        __name__,
        ["split", str(snapshot), "--policy", str(written), "--verify", "--out", str(draft), "-o", "json"],
        lambda seconds: beat(f"cutting for {seconds:.0f} s"),
        readable=[snapshot],
        workspace=workspace,
        confinement=confinement,
    )
    if ran.status != EXIT_OK:
        raise _failure(ran)
    draft.rename(out)  # out of reach of the process, if it left another one behind
    refuse_links(out, "cutting")
    return SplitReport.model_validate_json(read_bounded(out / REPORT_FILE))


def _failure(ran: ToolRun) -> Exception:
    if ran.status == EXIT_BAD_INPUT:
        return CutRefused(Reason.SPLIT_REFUSED, ran.last_words)
    if ran.status == EXIT_FAILURE and (differences := _differences(ran.answer)):
        return CutRefused(Reason.SPLIT_DIFFERS, "; ".join(differences))
    return ran.ended("cutting")


def _differences(answer: Path) -> tuple[str, ...]:
    try:
        found: Sequence[str] = json.loads(read_bounded(answer))["differences"]
    except (ValueError, KeyError):
        return ()
    return tuple(found)


def main(arguments: Sequence[str]) -> None:
    """Become `ipnext ...` within a limit of memory, confined, and end with the parent."""
    sys.argv = ["ipnext", *enter(arguments)]
    import_module("ipnext.cli.app").main()  # after the confinement, which starts no program


if __name__ == "__main__":
    main(sys.argv[1:])
