"""The process of one check that runs programs: `PROGRAM JOB SCRATCH`, started by the worker, which confines it first.

The job is JSON: the snapshots by their directories, each a full one and the deltas on it, and what to check. Its answer
is the report, on standard output. Exit status: 0 checked, whether or not it holds, 2 what does not fit the snapshot,
with the reason on standard error; others are failures that a retry may mend.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from pydantic import Field, model_validator

from ipnext.errors import EXIT_BAD_INPUT, EXIT_OK, IPnextError
from ipnext.model.manifest.replay import ReplaySpec
from ipnext.model.registry.checking import GoldenReport, RegressionReport
from ipnext.model.value import Value, canonical_json
from serving.checking.golden import run_golden
from serving.checking.regression import compare_figures
from serving.deltas.apply import apply_delta

OTHER_FAILURE: Final = 4

Chain = tuple[str, ...]
"""Directories of a full snapshot and of the deltas on it, in their order."""


class CheckJob(Value):
    """What a process is given: either `golden`, or `before`, `replay` and `limits`."""

    after: Chain = Field(min_length=1)
    """The new snapshot."""
    before: Chain = ()
    """The serving one."""
    replay: str | None = None
    """File of the replay set."""
    limits: ReplaySpec | None = None
    golden: str | None = None
    """File of the golden requests."""

    @model_validator(mode="after")
    def _is_one_check(self) -> Self:
        compares = bool(self.before) and self.replay is not None and self.limits is not None
        if compares == (self.golden is not None):
            msg = "a job has either golden, or before, replay and limits"
            raise ValueError(msg)
        return self


def check_snapshot(job: CheckJob, scratch: Path) -> RegressionReport | GoldenReport:
    """Carry out a job. Deltas are applied below `scratch`. InvalidInput if something does not fit the snapshot."""
    after = _assemble(job.after, scratch / "after")
    if job.golden is not None:
        return run_golden(after, Path(job.golden))
    assert job.limits is not None  # noqa: S101 - the job is one of two
    before = _assemble(job.before, scratch / "before")
    return compare_figures(before, after, Path(job.replay or ""), job.limits)


def _assemble(chain: Sequence[str], out: Path) -> Path:
    """Return the directory of a full snapshot: the first one if there is no delta on it."""
    *bases, newest = map(Path, chain)
    if not bases:
        return newest
    apply_delta(bases[-1], newest, out, bases=bases[:-1])
    return out


def main() -> None:
    """Carry out one check, and exit."""
    job, scratch = map(Path, sys.argv[1:])
    try:
        found = check_snapshot(CheckJob.model_validate_json(job.read_bytes()), scratch)
    except IPnextError as error:
        sys.stderr.write(f"error: {error.message}\n")
        sys.exit(OTHER_FAILURE if error.retryable else EXIT_BAD_INPUT)
    sys.stdout.write(canonical_json(found))
    sys.exit(EXIT_OK)
