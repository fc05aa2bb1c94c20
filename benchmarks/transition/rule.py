"""One model of several parts from one generation to the next: our rule beside two others, in one run.

    python -m benchmarks.transition.rule
    python -m benchmarks.transition.rule --plots docs/images/transition --docs

A request of a locked model needs every part of one generation, so what the fleet can answer at a moment, its **locked
capacity**, is the sum over generations of the least fraction of a part's replicas that is ready. Each snapshot has
processes of its own, so replicas of both generations add up; the surge is what stands beyond the settled number.

- planner: the waves of `planner.transition.planner`, after each phase;
- sequential: part after part, in each part a replica of the new generation up, then one of the old one down;
- lag-first: the same, but each time for the part that has gone the smallest part of its way.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.environments import ROOT
from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import FleetState, Transition
from planner.transition.planner import StepPolicy, plan_transition

PAGE = ROOT / "docs" / "transition.md"
BEGIN, END = "<!-- measured: rule -->", "<!-- end -->"
SIZES = ((4, 10, 40), (2, 6, 24), (1, 3, 60), (8, 8, 8), (5, 12, 20, 30, 60))
Counts = tuple[tuple[int, ...], tuple[int, ...]]
"""Replicas by part: of the old generation, of the new one."""


@dataclass(frozen=True)
class Walk:
    """What one way makes of the sizes, moment by moment."""

    way: str
    sizes: Sequence[int]
    steps: int
    moments: Sequence[Counts]

    @property
    def surge(self) -> int:
        """Most replicas beyond the settled number."""
        return max(sum(old) + sum(new) for old, new in self.moments) - sum(self.sizes)

    def locked(self) -> list[float]:
        """Locked capacity at each moment, 1 is all; what is above it is surge."""
        both = (
            tuple(min(n / s for n, s in zip(g, self.sizes, strict=True)) for g in moment) for moment in self.moments
        )
        return [sum(fractions) for fractions in both]


def ours(sizes: Sequence[int], steps: int) -> Walk:
    """Return the planner's waves in so many steps, on a supply that leaves it a tenth."""
    parts = [
        {"part": f"p{i}", "options": [{"hardware": "h", "units": 1.0, "qps": 1000.0 / n}]} for i, n in enumerate(sizes)
    ]
    demand = [{"region": "r", "qps": 1000.0}]
    model = {"model": "m", "owner": "o", "latency_tolerance_ms": 10.0, "demand": demand, "parts": parts}
    supply = [{"region": "r", "hardware": "h", "units": sum(sizes) + len(sizes) + 1.0, "unit_cost": 1.0}]
    problem = Problem.model_validate(
        {"regions": ["r"], "rtt_ms": [[1.0]], "hardware": ["h"], "supply": supply, "models": [model]}
    )
    origin, to = (_settled(sizes, generation) for generation in (1, 2))
    policy = StepPolicy(canary=1 / steps, max_step=1 / steps, refresh="replace")
    planned = plan_transition(problem, origin, to, {"m": policy})
    if planned.refused:
        raise SystemExit(planned.refused)
    return Walk("planner", sizes, len(planned.waves), list(_moments(sizes, planned)))


def _settled(sizes: Sequence[int], generation: int) -> FleetState:
    place = {"model": "m", "region": "r", "hardware": "h", "generation": generation}
    share = {"model": "m", "from": "r", "to": "r", "generation": generation, "fraction": 1.0}
    replicas = [{**place, "part": f"p{i}", "count": n} for i, n in enumerate(sizes)]
    return FleetState.model_validate({"replicas": replicas, "traffic": [share]})


def _moments(sizes: Sequence[int], planned: Transition) -> Iterator[Counts]:
    now = {(i, g): n if g == 1 else 0 for i, n in enumerate(sizes) for g in (1, 2)}
    phases = [rows for wave in planned.waves for rows in (wave.scale_up, wave.scale_down)]
    for rows in ((), *phases):
        now |= {(int(row.part[1:]), row.generation): row.count for row in rows}
        old, new = (tuple(now[i, g] for i in range(len(sizes))) for g in (1, 2))
        yield old, new


def rolling(way: str, sizes: Sequence[int]) -> Walk:
    """One replica after another, in the order of the way."""
    old, new, moments = list(sizes), [0] * len(sizes), [(tuple(sizes), (0,) * len(sizes))]
    while any(old):
        left = [i for i, n in enumerate(old) if n]
        i = left[0] if way == "sequential" else min(left, key=lambda i: (new[i] / sizes[i], i))
        new[i] += 1
        moments.append((tuple(old), tuple(new)))
        old[i] -= 1
        moments.append((tuple(old), tuple(new)))
    return Walk(way, sizes, sum(sizes), moments)


def walks(sizes: Sequence[int], steps: int) -> list[Walk]:
    """All three ways."""
    return [ours(sizes, steps), rolling("sequential", sizes), rolling("lag-first", sizes)]


def rows(found: Sequence[Walk]) -> list[tuple[str, ...]]:
    """Cells of the table."""
    return [
        (
            str(list(walk.sizes)),
            walk.way,
            str(walk.steps),
            f"{walk.surge} of {sum(walk.sizes)}",
            f"{min(walk.locked()):.0%}",
        )
        for walk in found
    ]


HEADS = ("replicas of the parts", "way", "steps", "peak surge", "least locked capacity")


def markdown(found: Sequence[Walk]) -> str:
    """Return the table for the page."""
    lines = [HEADS, ("---",) * len(HEADS), *rows(found)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw(found: Sequence[Walk], folder: Path) -> None:
    """Locked capacity on the way, as SVG."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    from benchmarks.planner.plots import STYLE  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        for walk, colour in zip(found, ("#1b6ca8", "#d1495b", "#edae49"), strict=True):
            gone = [sum(new) / sum(walk.sizes) for _, new in walk.moments]
            label = f"{walk.way}, peak surge {walk.surge}"
            axes.plot(gone, [100 * share for share in walk.locked()], label=label, color=colour, lw=1.2)
        axes.set(xlabel="replicas of the new generation, of all", ylabel="locked capacity, %", ylim=(0, 115))
        axes.legend(fontsize=7, loc="lower right")
        figure.savefig(folder / "rule.svg", format="svg", metadata={"Date": None})


def main() -> None:
    """Walk, and write the requested files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps of the planner")
    parser.add_argument("--plots", type=Path, help="folder for the picture")
    parser.add_argument("--docs", action="store_true", help=f"rewrite the table of {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    found = [walk for sizes in SIZES for walk in walks(sizes, asked.steps)]
    table = Table(*HEADS)
    for cells in rows(found):
        table.add_row(*cells)
    Console().print(table)
    if asked.plots:
        draw(found[:3], asked.plots)
    if asked.docs:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{markdown(found)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
