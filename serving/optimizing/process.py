"""The process of one step: `PROGRAM SNAPSHOT JOB OUT`, started by the worker, which confines it first.

The job is JSON: the step, and the file of its replay set. Its answer is the report, on standard output. Exit status: 0
derived, 1 a limit that was broken, 2 a step or snapshot that does not fit, with the reason on standard error; others
are failures that a retry may mend.
"""

import sys
from pathlib import Path
from typing import Final

from pydantic import Field

from ipnext.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK, IPnextError
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.value import Value, canonical_json
from serving.optimizing.derive import derive_snapshot

OTHER_FAILURE: Final = 4


class StepJob(Value):
    """What a process is given."""

    step: OptimizationStep
    replay: str | None = Field(default=None, min_length=1)


def main() -> None:
    """Run one step, and exit."""
    snapshot, job, out = map(Path, sys.argv[1:])
    given = StepJob.model_validate_json(job.read_bytes())
    try:
        found = derive_snapshot(snapshot, given.step, out, replay=None if given.replay is None else Path(given.replay))
    except IPnextError as error:
        sys.stderr.write(f"error: {error.message}\n")
        sys.exit(OTHER_FAILURE if error.retryable else EXIT_BAD_INPUT)
    sys.stdout.write(canonical_json(found.report))
    sys.exit(EXIT_FAILURE if found.manifest is None else EXIT_OK)
