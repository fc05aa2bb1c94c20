"""Derives a snapshot by one step of a pipeline, in a separate process (`activities.runtime.tool_process`).

Called by the optimization activity.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError

from activities.runtime.tool_process import (
    Beat,
    ToolEnded,
    ToolRun,
    enter,
    read_bounded,
    refuse_links,
    run_tool,
)
from ipnext.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.registry.optimization import AccuracyReport
from ipnext.model.value import canonical_json
from serving.confinement.landlock import Confinement

STEP_SECONDS = 3600.0
"""Longest time of a step's process."""


@dataclass(frozen=True, slots=True)
class StepSource:
    """What a step derives from: the snapshot of a directory, and the replay set of the published one."""

    snapshot: Path
    replay: Path | None = None
    """A file in the directory of a snapshot."""


Deriver = Callable[[StepSource, OptimizationStep, Path, Beat], AccuracyReport]
"""Derives a snapshot by one step, and writes it to a directory if it keeps every limit: the report lists broken ones.
Raises StepRefused or ToolEnded."""


class StepRefused(Exception):
    """The step does not fit the snapshot, or takes too long; a retry would not help."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def derive_in_process(
    source: StepSource,
    step: OptimizationStep,
    out: Path,
    beat: Beat,
    *,
    confinement: Confinement = Confinement.AVAILABLE,
    seconds: float | None = None,
) -> AccuracyReport:
    """Derive in a child process; see Deriver. `seconds`: its time limit, by default STEP_SECONDS.

    Scratch files are beside `out`; of them the process writes only those in `step`.
    """
    workspace = out.parent / "step"
    workspace.mkdir()
    job = workspace / "job.json"
    replay = None if source.replay is None else str(source.replay)
    job.write_text(canonical_json({"step": step.model_dump(mode="json", by_alias=True), "replay": replay}))
    draft = workspace / out.name
    limit = STEP_SECONDS if seconds is None else seconds
    ran = run_tool(
        __name__,
        [str(source.snapshot), str(job), str(draft)],
        lambda taken: _tell(beat, step.kind, taken, limit),
        readable=[source.snapshot, *([] if source.replay is None else [source.replay.parent])],
        workspace=workspace,
        confinement=confinement,
        runs_programs=step.compile is not None,
    )
    report = _report(ran, step.kind)
    if not report.broken:
        draft.rename(out)  # out of reach of the process, if it left another one behind
        refuse_links(out, step.kind)
    return report


def _tell(beat: Beat, kind: str, taken: float, limit: float) -> None:
    if taken > limit:
        msg = f"{kind}: it took more than {limit:g} s"
        raise StepRefused(msg)
    beat(f"{kind} for {taken:.0f} s")


def _report(ran: ToolRun, kind: str) -> AccuracyReport:
    """Return the report of a step that was judged. Raises StepRefused or ToolEnded."""
    if ran.status == EXIT_BAD_INPUT:
        raise StepRefused(ran.last_words)
    if ran.status not in {EXIT_OK, EXIT_FAILURE}:
        raise ran.ended(kind)
    try:
        report = AccuracyReport.model_validate_json(read_bounded(ran.answer))
    except ValidationError as error:
        raise ran.ended(kind) from error
    if bool(report.broken) != (ran.status == EXIT_FAILURE):
        msg = f"{kind} answered with a report that is not that of its exit status"
        raise ToolEnded(msg)
    return report


def main(arguments: Sequence[str]) -> None:
    """Become a step's process within a limit of memory, confined, and end with the parent."""
    sys.argv = ["optimize", *enter(arguments)]
    import_module("serving.optimizing.process").main()  # after the confinement, which starts no program


if __name__ == "__main__":
    main(sys.argv[1:])
