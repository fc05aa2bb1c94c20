"""Judges chat templates in a process of its own, with limits of processor time, memory and output.

Called by the validator `checkpoint`. The process reads templates from its standard input and has no rights beside; it
dies with its parent, and is killed when the activity is cancelled.
"""

import contextlib
import json
import mmap
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from activities.runtime.child_process import ChildFiles, begin_child, child_environment, confine_child, run_child
from activities.validation.chat_templates import rendering
from ipnext.artifacts.checkpoints.tokenizer_files import ChatTemplate
from ipnext.errors import EXIT_OK, Unavailable
from ipnext.model.echoes import cut_text
from serving.confinement.landlock import Confinement

COMPILE_SECONDS: Final = 15
"""Processor time of compiling one template; one of the largest size takes 4 s."""
RENDER_SECONDS: Final = 2
"""Processor time of rendering one conversation; known models take milliseconds for 256 turns."""
ALL_SECONDS: Final = 60
"""Processor time of all templates of a checkpoint."""
MEMORY_BYTES: Final = 1 << 30
"""Address space of the process; a template of the largest size takes half of it to compile."""
LARGEST_OUTPUT_BYTES: Final = 1 << 20
"""Of a file that the process writes: the steps that it begins."""
EXIT_NO_MEMORY: Final = 75
"""Exit status if the machine, not the limit, denied memory."""
FROM_OUTSIDE: Final = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that the machine or a person sends, of which a template knows nothing."""
_SPARE_BYTES: Final = 64 << 20
_MESSAGE_CHARACTERS: Final = 1000

Beat = Callable[[str], None]
Step = Mapping[str, Any]
"""A line of the process's answer: the `template` by its number with the `step` that begins, or the `fault` at the end,
which is null if there is none."""


def find_template_fault(
    templates: Sequence[ChatTemplate],
    special_tokens: Mapping[str, str],
    beat: Beat,
    *,
    confinement: Confinement = Confinement.AVAILABLE,
) -> str | None:
    """Return the fault of the first template that is refused, with its place; None if there is none.

    Raises:
        Unavailable: the process did not begin, or was ended from outside: a further try may succeed.
        TemplateProcessEnded: it ended by an error that no template is known to cause.
    """
    if not templates:
        return None
    with tempfile.TemporaryDirectory(prefix="ipnext-templates-") as name:
        workspace = Path(name)
        files = ChildFiles(workspace / "answer", workspace / "errors", workspace / "job")
        job = {"templates": [template.text for template in templates], "special_tokens": dict(special_tokens)}
        (workspace / "job").write_text(json.dumps(job), encoding="ascii")
        status = run_child(
            [sys.executable, "-m", "activities.validation.chat_templates.process", str(os.getpid()), confinement],
            files,
            lambda seconds: beat(f"rendering chat templates for {seconds:.0f} s"),
            environment=child_environment(dict.fromkeys(("HOME", "TMPDIR"), name)),
        )
        places = [template.place for template in templates]
        return judge_end(status, places, _read(files.answer), _read(files.errors))


def judge_end(status: int, places: Sequence[str], answer: str, errors: str) -> str | None:
    """Return the fault of a template by the end of the process; None if all pass.

    `status` is its exit status, `answer` its lines. A signal or a lack of memory is a fault of the template whose step
    had begun, unless it came from outside. Raises as `find_template_fault` does.
    """
    lines = [_parse(line) for line in answer.splitlines()]
    last = lines[-1] if lines else {}
    number = last.get("template")
    place = places[number] if isinstance(number, int) and 0 <= number < len(places) else None
    if status == EXIT_OK and "fault" in last:
        fault = last["fault"]
        return None if fault is None else f"{place or places[0]}: {_cut(fault)}"
    told = errors.strip().splitlines()
    words = told[-1] if told else "it said nothing"
    if place is not None and (end := _end_by_template(status, words)) is not None:
        return f"{place}: {_cut(last.get('step'))} {end}"
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    if status == EXIT_NO_MEMORY:
        how = "for want of the machine's memory"
    msg = f"the process that renders chat templates ended {how}: {_cut(words)}"
    if place is not None and status >= 0 and status != EXIT_NO_MEMORY:
        raise TemplateProcessEnded(msg)
    raise Unavailable(msg)


class TemplateProcessEnded(RuntimeError):
    """The process ended by an error of its own; a retry seldom helps."""


def _end_by_template(status: int, words: str) -> str | None:
    """Return what the template did if it ended the process; None if it did not. `words`: the last that were said."""
    if -status in _LIMITS:
        return _LIMITS[-status]
    if status > 0 and words.startswith(MemoryError.__name__):
        return _TOO_MUCH_MEMORY
    if status < 0 and -status not in FROM_OUTSIDE:
        return f"ends Python by {signal.Signals(-status).name}: {_cut(words)}"
    return None


_TOO_MUCH_MEMORY: Final = f"takes more than {MEMORY_BYTES >> 20} MiB of memory"
_LIMITS: Final[Mapping[int, str]] = {
    signal.SIGPROF: (
        f"takes too much processor time; allowed: {COMPILE_SECONDS} s to compile a template, "
        f"{RENDER_SECONDS} s to render a conversation"
    ),
    signal.SIGXCPU: f"exceeds the processor time of all templates together; allowed: {ALL_SECONDS} s",
    signal.SIGSEGV: "ends Python: it is nested too deep",
}
"""Signals that end the process at a limit of the template."""


def _parse(line: str) -> Step:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _cut(text: object) -> str:
    return cut_text(str(text), _MESSAGE_CHARACTERS)


def _read(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(LARGEST_OUTPUT_BYTES).decode("utf-8", "replace")


def main(arguments: Sequence[str]) -> None:
    """Judge the templates of standard input, within limits, confined; end with the parent."""
    parent, confinement = arguments
    begin_child(int(parent))
    _limit()
    job = json.load(sys.stdin)
    confine_child(Confinement(confinement))
    for number, text in enumerate(job["templates"]):
        fault = _find_fault(number, text, job["special_tokens"])
        if fault is not None:
            _say({"template": number, "fault": fault})
            return
    _say({"fault": None})


def _find_fault(number: int, text: str, special_tokens: Mapping[str, str]) -> str | None:
    begun = [""]

    def begin(step: str) -> None:
        begun.append(step)
        _begin(number, step)

    with contextlib.suppress(MemoryError):
        return rendering.find_fault(text, special_tokens, rendering.Limits(begin, _stop_clock))
    if not _has_room():  # what the template has made is free again
        sys.exit(EXIT_NO_MEMORY)
    return f"{begun[-1]} {_TOO_MUCH_MEMORY}"


def _limit() -> None:
    """Limit this process. A limit of time ends it by a signal, since nothing in Python interrupts a long operation."""
    for number in (signal.SIGPROF, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (ALL_SECONDS, ALL_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_OUTPUT_BYTES, LARGEST_OUTPUT_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _begin(number: int, step: str) -> None:
    _stop_clock()
    _say({"template": number, "step": step})
    signal.setitimer(signal.ITIMER_PROF, COMPILE_SECONDS if step == "compiling" else RENDER_SECONDS)


def _stop_clock() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)


def _say(step: Step) -> None:
    sys.stdout.write(json.dumps(step) + "\n")
    sys.stdout.flush()


def _has_room() -> bool:
    """Return whether the machine gives this process the rest of its limit: else the limit was not the reason."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    rest = MEMORY_BYTES - pages * resource.getpagesize() - _SPARE_BYTES
    try:
        mmap.mmap(-1, max(rest, resource.getpagesize())).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
