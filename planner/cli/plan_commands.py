"""`ipnext plan solve`, `check`, `diff`, `show`: find, check, compare and display plans."""

import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ipnext.errors import EXIT_FAILURE
from ipnext.model.planning.explanation import SupplyUse
from ipnext.model.planning.plan import Plan, PlanDiff, Problem
from planner import kernel_cache
from planner.cli.charts import bars, svg, units
from planner.cli.output import (
    Form,
    Output,
    PlanFile,
    ProblemFile,
    Target,
    beside,
    exit_on_error,
    facts,
    render_titled,
    rows,
    solver_silent,
    write_answer,
    write_document,
    write_file,
)
from planner.core.diff import diff
from planner.explain.explanation import supply_use
from planner.io.problem import read_plan, read_problem, read_transition
from planner.kernels import Preparation, preparation
from planner.plan_fit import broken_rules
from planner.solve import asks_fleet, place, solve
from planner.verify.plan_checker import Violation, check

NOT_COMPILED = "compiling the planner's kernels first, once for this machine: a minute or two"


class Method(StrEnum):
    """Search method of a plan."""

    AUTO = "auto"
    REFERENCE = "reference"
    FLEET = "fleet"


MethodOption = Annotated[
    Method,
    typer.Option(help="reference: a mixed-integer program, small fleets; fleet: prices and columns; auto: by size."),
]


def solve_command(
    problem: ProblemFile,
    output: Target = None,
    *,
    place_models: Annotated[
        list[str] | None,
        typer.Option("--place", metavar="MODEL", help="Place only these; all others stay as they run."),
    ] = None,
    method: MethodOption = Method.AUTO,
) -> None:
    """Find a plan. Demand that cannot be held is left unmet, with the rules that bind."""
    with exit_on_error():
        stated = read_problem(problem)
        if asks_fleet(stated, method.value) and not kernel_cache.is_complete():
            typer.echo(NOT_COMPILED, err=True)
        started = time.perf_counter()
        with solver_silent():
            plan = (
                place(stated, place_models, method=method.value) if place_models else solve(stated, method=method.value)
            )
        took, kernels = time.perf_counter() - started, preparation()
        write_document(plan, output)
        for table in _summary(plan, took - kernels.wall_seconds, kernels):
            beside(table)


def check_command(problem: ProblemFile, plan: PlanFile, output: Output = Form.TABLE) -> None:
    """Check a plan against every rule. Exit status 1 if it breaks one."""
    with exit_on_error():
        report(check(read_problem(problem), read_plan(plan)), output)


def diff_command(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="plan.json")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="plan.json")],
    output: Output = Form.TABLE,
) -> None:
    """Show what changes from one plan.json to another."""
    with exit_on_error():
        change = diff(read_plan(before), read_plan(after))
        write_answer(change, output, lambda: diff_tables(change))


def show_command(
    problem: ProblemFile,
    plan: PlanFile,
    output: Output = Form.TABLE,
    *,
    transition: Annotated[
        Path | None, typer.Option(metavar="TRANSITION", help="transition.json: shows the surge of its waves.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write the picture here.")] = None,
) -> None:
    """Regions by hardware: used, free and surge, as a picture and as figures."""
    with exit_on_error():
        stated, planned = read_problem(problem), read_plan(plan)
        broken_rules(stated, planned)
        surge = read_transition(transition).surge if transition else ()
        uses = supply_use(stated, planned, surge={(item.region, item.hardware): item.units for item in surge})
        if picture:
            write_file(svg(uses, (stated.regions, stated.hardware), _title(stated, planned)), picture, "--svg")
        write_answer(uses, output, lambda: _render_plan(stated, planned, uses))


def _title(problem: Problem, plan: Plan) -> str:
    return f"{len(problem.models):,} models, {plan.cost_per_hour:,.2f} $/h"


def _render_plan(problem: Problem, plan: Plan, uses: Sequence[SupplyUse]) -> Iterator[Table | str]:
    axes = (problem.regions, problem.hardware)
    yield bars(uses, axes)
    yield ""
    yield units(uses, axes)
    unmet = sum(item.qps for item in plan.unmet)
    yield ""
    yield f"{_title(problem, plan)}, {sum(r.count for r in plan.replicas):,} replicas" + (
        f", {unmet:,.6g} QPS unmet" if unmet else ""
    )


def report(violations: Sequence[Violation], output: Form) -> None:
    """Report a checker's violations; end the command if there are any."""
    if output is Form.TABLE and not violations:
        typer.echo("valid: every rule holds")
    else:
        heads = ["rule", "where", "what"]
        write_answer(
            violations,
            output,
            lambda: rows("broken rules", heads, [[v.rule, v.subject, v.message] for v in violations]),
        )
    if violations:
        raise typer.Exit(EXIT_FAILURE)


def _summary(plan: Plan, seconds: float, kernels: Preparation) -> Iterator[Table | str]:
    """Summarise a plan. `seconds` is the search time, without the preparation of the kernels."""
    compiled = [("kernels", f"compiled for this machine in {kernels.wall_seconds:.1f} s, once; the time is without it")]
    yield facts(
        "plan",
        [
            ("status", plan.status),
            ("objective", f"{plan.objective:,.2f} $/h"),
            ("bound", f"{plan.bound:,.2f} $/h ({plan.bound_covers})"),
            ("gap", f"{plan.gap:.2%}"),
            ("cost", f"{plan.cost_per_hour:,.2f} $/h"),
            ("replicas", f"{sum(item.count for item in plan.replicas):,}"),
            ("time", f"{seconds:.1f} s"),
            *(compiled if kernels.compiled else []),
        ],
    )
    if plan.unmet:
        yield ""
        yield from unmet_tables(plan)


def unmet_tables(plan: Plan) -> Iterator[Table | str]:
    """Yield the unmet demand and its reasons, largest first."""
    most = sorted(plan.unmet, key=lambda item: -item.qps)
    lines = [[item.model, item.region, f"{item.qps:,.6g}", few(item.rules)] for item in most]
    yield from render_titled(f"unmet demand ({len(most)})", ["model", "region", "QPS", "rules that bind"], lines)


def few(names: Sequence[str], most: int = 4) -> str:
    """Join the first names, and the number of the rest."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def diff_tables(change: PlanDiff) -> Iterator[Table | str]:
    """Yield the changes as tables for users."""
    if change.empty:
        yield "nothing changes"
        return
    places = sorted(change.replicas, key=lambda row: -abs(row.after - row.before))
    if places:
        lines = [[r.model, r.part, f"{r.region}/{r.hardware}", r.before, r.after] for r in places]
        yield from render_titled(
            f"replicas ({change.moves:,} started)", ["model", "part", "where", "before", "after"], lines
        )
        yield ""
    routes = sorted(change.traffic, key=lambda row: -abs(row.after - row.before))
    if routes:
        lines = [[t.model, t.origin, t.to, f"{t.before:.4g}", f"{t.after:.4g}"] for t in routes]
        yield from render_titled("traffic", ["model", "from", "to", "before", "after"], lines)
        yield ""
    yield f"cost {change.cost_per_hour_before:,.2f} -> {change.cost_per_hour_after:,.2f} $/h"


COMMANDS = {"solve": solve_command, "check": check_command, "diff": diff_command, "show": show_command}
