"""Runs a tool of `serving` on a snapshot in a separate, confined process, so that the worker never imports torch.

The process dies with its parent, and is killed when the activity is cancelled or its time is over. It runs the program
of the snapshot, which a publisher exported: it confines itself as a torch host does, to reading snapshots and writing
one directory, and has none of the worker's credentials. What it leaves is read with limits.

Used by the processes of a split, of a step and of the checks that run programs.
"""

import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from activities.runtime.child_process import ChildFiles, begin_child, child_environment, confine_child
from activities.runtime.tool_server import ONE_THREAD, run_forked
from ipnext.errors import EXIT_OK
from ipnext.model.echoes import cut_text
from serving.confinement.landlock import Confinement

LEAST_MEMORY_BYTES: Final = 8 << 30
MEMORY_SHARE: Final = 6
"""Memory that a tool may take: so many bytes, and so many for each byte of the snapshot. It runs what a stranger
exported."""
LAST_WORDS: Final = 600
"""Characters of a failed process's errors that are reported."""
LARGEST_OUTPUT_BYTES: Final = 64 << 20
"""Limit of what is read of a process's report, answer and errors: a snapshot may have taken it over."""

Beat = Callable[[str], None]


class ToolEnded(RuntimeError):
    """The process ended without an answer: killed, or out of memory."""


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A tool's process that has ended: its exit status, standard output and errors."""

    status: int
    answer: Path
    errors: str

    @property
    def last_words(self) -> str:
        """The last line of its errors, cut: it may repeat names of a stranger's snapshot."""
        if not self.errors:
            return "it said nothing"
        return cut_text(self.errors.splitlines()[-1].removeprefix("error: "), LAST_WORDS)

    def ended(self, doing: str) -> ToolEnded:
        """Return the error for a status that is no answer."""
        if self.status < 0:
            return ToolEnded(f"{doing} was ended by {signal.Signals(-self.status).name}, perhaps for want of memory")
        return ToolEnded(f"{doing} ended with status {self.status}: {self.errors[-LAST_WORDS:] or 'it said nothing'}")


def run_tool(  # noqa: PLR0913 - the rights of the process are named one by one
    module: str,
    arguments: Sequence[str],
    beat: Callable[[float], None],
    *,
    readable: Sequence[Path],
    workspace: Path,
    confinement: Confinement,
    runs_programs: bool = False,
) -> ToolRun:
    """Run the function `main` of `module` in a process of its own, which writes `workspace` only.

    Standard output and errors go to files next to `workspace`. `beat` is called with the seconds since the start.
    `runs_programs`: it may start those of the system and of this environment, such as a compiler, which have its limits
    and no rights beyond its own.
    """
    size = sum(file.stat().st_size for place in readable for file in place.rglob("*"))
    limit = LEAST_MEMORY_BYTES + MEMORY_SHARE * size
    programs = "programs" if runs_programs else "none"
    rights = [str(os.getpid()), str(limit), confinement, programs, os.pathsep.join(map(str, readable)), str(workspace)]
    command = [sys.executable, "-m", module, *rights, *arguments]
    answer, errors = workspace.parent / "answer.json", workspace.parent / "errors.txt"
    own = {name: str(workspace) for name in ("HOME", "TMPDIR", "TORCHINDUCTOR_CACHE_DIR")}
    environment = child_environment({**ONE_THREAD, **own})  # compared as it will be served
    status = run_forked(command, ChildFiles(answer, errors), beat, environment=environment)
    told = "" if status == EXIT_OK else read_bounded(errors).decode("utf-8", "replace").strip()
    return ToolRun(status, answer, told)


def enter(arguments: Sequence[str]) -> Sequence[str]:
    """Confine this process, and return the arguments of its tool. The tool is imported afterwards."""
    parent, memory, confinement, programs, readable, workspace, *command = arguments
    begin_child(int(parent))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    places = [Path(place) for place in readable.split(os.pathsep)]
    runs = programs == "programs"
    confine_child(Confinement(confinement), readable=places, writable=[Path(workspace)], runs_programs=runs)
    return command


def refuse_links(directory: Path, doing: str) -> None:
    """Raise ToolEnded if a process that was taken over has left a link, which would lead the upload elsewhere."""
    for place in (directory, *directory.rglob("*")):
        if not stat.S_ISDIR(mode := place.lstat().st_mode) and not stat.S_ISREG(mode):
            msg = f"{doing} left {place.name!r}, which is neither a file nor a directory"
            raise ToolEnded(msg)


def read_bounded(file: Path) -> bytes:
    """Return the content of a file that the process wrote. ToolEnded if it is too large."""
    with file.open("rb") as stream:
        content = stream.read(LARGEST_OUTPUT_BYTES + 1)
    if len(content) > LARGEST_OUTPUT_BYTES:
        msg = f"the process wrote {file.name} of more than {LARGEST_OUTPUT_BYTES} bytes"
        raise ToolEnded(msg)
    return content
