"""What a run came to, as tables. Pure but for printing."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from tests.nemesis.checks.checker import Violation, excused, failures
from tests.nemesis.checks.story import Story, Window
from tests.nemesis.history import Event, ended

SHOWN = 20
STEERING = ("pause", "resume", "approve", "abort", "promote", "freeze", "unfreeze", "steer", "drain", "undrain")


def print_report(history: Sequence[Event], violations: Sequence[Violation], console: Console) -> None:
    """Operations, faults with how long they took to heal, answers, and every broken promise."""
    story = Story(history)
    console.print(_operations(story))
    console.print(_outcomes(story))
    console.print(_faults(story))
    failed = failures(story)
    within = [asked for asked in failed if excused(story, asked)]
    samples = sum(event.f == "sample" for event in history)
    console.print(f"requests: {len(story.requests)}, answered {len(story.answers)}")
    console.print(f"failed within windows of data-plane faults: {len(within)}, outside: {len(failed) - len(within)}")
    console.print(f"samples of the capacity floor: {samples}")
    if not violations:
        console.print("every promise held")
    for rule, count in Counter(violation.rule for violation in violations).items():
        console.print(f"BROKEN {rule}: {count}", style="bold red")
    for violation in violations[:SHOWN]:
        console.print(f"  {violation}", markup=False)


def _operations(story: Story) -> Table:
    counts: dict[str, Counter[str]] = {}
    for f in ("publish", "rollback", "apply", "retire", "fleet", "replan", *STEERING):
        counts[f] = Counter(end.type for _, end in ended(story.history, f))
    table = Table("operation", "ok", "fail", "unknown", title="what was asked")
    for f, found in counts.items():
        table.add_row(f, str(found["ok"]), str(found["fail"]), str(found["info"]))
    return table


def _outcomes(story: Story) -> Table:
    table = Table("kind", "done", "refused", "rolled_back", "superseded", title="how changes ended")
    kinds: dict[str, Counter[str]] = {}
    for change in (change for changes in story.changes.values() for change in changes):
        kinds.setdefault(change.kind, Counter())[change.state] += 1
    for kind, found in sorted(kinds.items()):
        table.add_row(kind, *(str(found[state]) for state in ("done", "refused", "rolled_back", "superseded")))
    return table


def _faults(story: Story) -> Table:
    table = Table(
        "fault", "count", "failed requests", "whole again s", "next answer s", "next change s", title="faults"
    )
    groups: dict[tuple[str, str], list[Window]] = {}
    for window in story.windows:
        groups.setdefault((window.fault["kind"], window.fault["role"]), []).append(window)
    for (kind, role), windows in sorted(groups.items()):
        lost = sum(window.covers(asked.begin.at, asked.end.at) for window in windows for asked in failures(story))
        table.add_row(
            f"{kind} {role}",
            str(len(windows)),
            str(lost),
            _spread(window.end - window.begin for window in windows if window.end is not None),
            _spread(filter(None, (_next_answer(story, window) for window in windows))),
            _spread(filter(None, (_next_change(story, window) for window in windows))),
        )
    return table


def _next_answer(story: Story, window: Window) -> float | None:
    """Until, in the fault's region, a request that began after the fault had its answer."""
    regions = {window.fault["region"]} if window.fault.get("region") else None
    for asked in story.answers:
        if asked.begin.at > window.begin and (regions is None or asked.region in regions):
            return asked.end.at - window.begin
    return None


def _next_change(story: Story, window: Window) -> float | None:
    """Until a change was done after the fault."""
    offset = next(event.wall - event.at for event in story.history if event.f == "begin")
    finished = [
        c.finished - offset for rows in story.changes.values() for c in rows if c.finished and c.state == "done"
    ]
    return min((at - window.begin for at in finished if at > window.begin), default=None)


def _spread(seconds: Iterable[float]) -> str:
    found = sorted(seconds)
    return f"{found[0]:.1f}-{found[-1]:.1f}" if found else "-"
