"""Runs a check on the programs of snapshots in a separate, confined process (`activities.runtime.tool_process`).

Called by the validators of `activities.validation.program_checks`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from activities.runtime.tool_process import Beat, enter, read_bounded, run_tool
from ipnext.errors import EXIT_BAD_INPUT, EXIT_OK
from ipnext.model.value import Value, canonical_json
from serving.confinement.landlock import Confinement

CHECK_SECONDS: Final = 900.0
"""Longest time of a check's process."""
DOING: Final = "running programs"

R = TypeVar("R", bound=Value)


class CheckUnfit(Exception):
    """What is to be checked does not fit the snapshot; a retry would not help."""


class CheckTooLong(Exception):
    """The process took longer than CHECK_SECONDS."""


@dataclass(frozen=True, slots=True)
class CheckFiles:
    """What a check reads: directories of snapshots; and a directory that exists and is its own."""

    readable: Sequence[Path]
    scratch: Path


Examine = Callable[[Mapping[str, Any], CheckFiles, type[Any], Beat], Any]
"""Carries out a job of `serving.checking.process`, and returns its report, of the given type. Raises CheckUnfit,
CheckTooLong or ToolEnded."""


def examine_in_process(
    job: Mapping[str, Any],
    files: CheckFiles,
    answer: type[R],
    beat: Beat,
    *,
    confinement: Confinement = Confinement.AVAILABLE,
    seconds: float = CHECK_SECONDS,
) -> R:
    """Carry out a job in a child process; see Examine. `seconds`: its time limit."""
    workspace = files.scratch / "check"
    workspace.mkdir()
    written = workspace / "job.json"
    written.write_text(canonical_json(dict(job)))

    def tell(taken: float) -> None:
        if taken > seconds:
            msg = f"it took more than {seconds:g} s"
            raise CheckTooLong(msg)
        beat(f"{DOING} for {taken:.0f} s")

    ran = run_tool(
        __name__,
        [str(written), str(workspace)],
        tell,
        readable=files.readable,
        workspace=workspace,
        confinement=confinement,
    )
    if ran.status == EXIT_BAD_INPUT:
        raise CheckUnfit(ran.last_words)
    if ran.status != EXIT_OK:
        raise ran.ended(DOING)
    try:
        return answer.model_validate_json(read_bounded(ran.answer))
    except ValidationError as error:
        raise ran.ended(DOING) from error


def main(arguments: Sequence[str]) -> None:
    """Become a check's process within a limit of memory, confined, and end with the parent."""
    sys.argv = ["check", *enter(arguments)]
    import_module("serving.checking.process").main()  # after the confinement, which starts no program


if __name__ == "__main__":
    main(sys.argv[1:])
