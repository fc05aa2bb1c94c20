"""Validator of programs: refuses by name, and without torch, whatever the torch engine would refuse to load."""

from collections.abc import Iterator
from functools import partial

from activities.validation.validator import Candidate, fail_check, pass_check
from ipnext.artifacts.programs.forms import UnsafeProgram
from ipnext.artifacts.programs.reader import (
    ENGINE,
    LARGEST_PROGRAM_BYTES,
    PROGRAM_FILE,
    parse_program,
    program_file,
)
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import ArtifactFile

PROGRAM = "program"


def check_programs(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield one result for each `program.json` of torch; its operators, names and texts must be of closed sets.

    A full snapshot without one is refused.
    """
    for part, snapshot in sorted(candidate.snapshots.items()):
        manifest, subject = snapshot.manifest, f"{part}/{PROGRAM_FILE}"
        file = program_file(manifest)
        if file is None:
            if manifest.engine == ENGINE and not manifest.is_delta:
                message = f"is missing: a snapshot of engine {ENGINE!r} has a program, or is a delta; export the model"
                yield fail_check(PROGRAM, subject, Reason.ARTIFACT_MISSING, message)
            continue
        candidate.beat(f"reading {subject}")
        try:
            operations = candidate.parse(file.size_bytes, partial(_operations, candidate, file))
        except UnsafeProgram as problem:
            yield fail_check(PROGRAM, subject, Reason.UNSAFE_FORMAT, f"{problem}; export the model again")
        else:
            yield pass_check(PROGRAM, subject, f"{operations} operations")


def _operations(candidate: Candidate, file: ArtifactFile) -> int:
    """Count the operations of a safe program. Raises UnsafeProgram."""
    with candidate.open(file.sha256) as stream:
        document = parse_program(stream.read(LARGEST_PROGRAM_BYTES + 1))
    return len(document["program"]["graph_module"]["graph"]["nodes"])
