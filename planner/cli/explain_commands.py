"""`ipnext plan explain`, `conflict`, `what-if`: the reasons and limits of a plan, the effect of a change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ipnext.errors import EXIT_INFEASIBLE, InvalidInput
from ipnext.model.planning.explanation import PlanFigures, WhatIf
from planner.cli.explanation_tables import conflict_tables, explanation_tables
from planner.cli.output import (
    Form,
    Output,
    PlanFile,
    ProblemFile,
    document,
    exit_on_error,
    fail,
    render_titled,
    rows,
    solver_silent,
    write_answer,
    write_file,
)
from planner.cli.plan_commands import Method, MethodOption, diff_tables, few
from planner.explain.conflict import conflict
from planner.explain.explanation import explain
from planner.explain.what_if import Kind, change_of, what_if
from planner.io.problem import read_plan, read_problem
from planner.solve import solve

OneModel = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="This model alone, in detail.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", metavar="MODEL", help="Demand of these alone; may be repeated.")
]
OthersOption = Annotated[
    Path | None,
    typer.Option("--plan", metavar="PLAN", help="plan.json: what the other models have; else the current placement."),
]
BeforeOption = Annotated[
    Path | None, typer.Option("--plan", metavar="PLAN", help="plan.json: what runs before; else that is planned first.")
]
Texts = list[str] | None


def _option(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=text + " May be repeated.")


def explain_command(
    problem: ProblemFile,
    plan: PlanFile,
    output: Output = Form.TABLE,
    *,
    model: OneModel = None,
    prices: Annotated[
        bool | None,
        typer.Option(help="What one more unit is worth; else left out for one model of more than twenty, for speed."),
    ] = None,
) -> None:
    """Explain a plan: rules that bind, what one more unit is worth, runners-up, what unmet demand would take."""
    with exit_on_error():
        stated, planned = read_problem(problem), read_plan(plan)
        with solver_silent():
            found = explain(stated, planned, model, priced=prices)
        write_answer(found, output, lambda: explanation_tables(found))


def conflict_command(
    problem: ProblemFile, output: Output = Form.TABLE, *, model: Models = None, plan: OthersOption = None
) -> None:
    """Which limits together leave no room to serve all demand. Exit status 3 if there are such limits."""
    with exit_on_error():
        stated = read_problem(problem)
        state = read_plan(plan) if plan else None
        with solver_silent():
            found = conflict(stated, models=model, state=state)
        write_answer(found, output, lambda: conflict_tables(found) if found else ["all of this demand can be served"])
        if found is not None:
            names = few([member.name for member in found.members], most=8)
            fail(f"infeasible: not all of this demand can be served under {names}", EXIT_INFEASIBLE)


def what_if_command(  # noqa: PLR0913 - one option for each kind of change
    problem: ProblemFile,
    output: Output = Form.TABLE,
    *,
    plan: BeforeOption = None,
    supply: Annotated[
        Texts, _option("REGION/HARDWARE=+40", "Units: =120, =+40, =-40, =*0.5; * stands for all.")
    ] = None,
    demand: Annotated[Texts, _option("MODEL[/REGION]=*1.2", "QPS; * stands for all models.")] = None,
    budget: Annotated[Texts, _option("owner/NAME=900", "$/h of owner/NAME or model/NAME; =none lifts it.")] = None,
    drain: Annotated[Texts, _option("REGION", "No supply in this region.")] = None,
    objective: Annotated[Texts, _option("move_cost=0.1", "A weight of the objective.")] = None,
    limit: Annotated[Texts, _option("max_moves=20", "A limit of the problem; max_moves=none lifts it.")] = None,
    method: MethodOption = Method.AUTO,
    after: Annotated[Path | None, typer.Option("--after", metavar="FILE", help="Write the plan after here.")] = None,
) -> None:
    """Show what a change would do to cost, placements and unmet demand, before anything happens."""
    with exit_on_error():
        stated = read_problem(problem)
        given: dict[Kind, Texts] = {
            "supply": supply,
            "demand": demand,
            "budget": budget,
            "drain": drain,
            "objective": objective,
            "limit": limit,
        }
        changes = [change_of(kind, text) for kind, texts in given.items() for text in texts or ()]
        if not changes:
            options = [f"--{kind}" for kind in given]
            msg = f"what-if: no change is given; allowed: at least one of {', '.join(options)}"
            raise InvalidInput(msg, field="what-if", allowed=options)
        before = read_plan(plan) if plan else None
        with solver_silent():
            found, planned = what_if(stated, changes, plan=before, replan=lambda p: solve(p, method=method.value))
        if after:
            write_file(document(planned), after, "--after")
        write_answer(found, output, lambda: _what_if_tables(found))


def _what_if_tables(found: WhatIf) -> Iterator[Table | str]:
    yield "what if: " + "; ".join(map(str, found.changes))
    yield ""
    yield _figures_table(found.before, found.after)
    if found.broken:
        yield ""
        yield f"if nothing moved it would break: {few(found.broken)}"
    if found.unmet:
        lines = [[u.model, u.region, f"{u.before:,.6g}", f"{u.after:,.6g}", few(u.rules)] for u in found.unmet]
        heads = ["model", "region", "before", "after", "rules"]
        yield ""
        yield from render_titled(f"unmet demand that changes ({len(found.unmet)})", heads, lines)
    yield ""
    yield from diff_tables(found.diff)
    yield f"plan after: {found.status}, gap {found.gap:.2%}"


def _figures_table(before: PlanFigures, after: PlanFigures) -> Table:
    names = {
        "objective": "objective, $/h",
        "cost_per_hour": "hardware, $/h",
        "latency_per_hour": "latency, $/h",
        "moves_per_hour": "moves, $/h",
        "unmet_per_hour": "unmet, $/h",
        "unmet_qps": "unmet, QPS",
        "demand_qps": "demand, QPS",
        "replicas": "replicas",
        "moves": "replicas started",
    }
    lines = []
    for field, name in names.items():
        old, new = getattr(before, field), getattr(after, field)
        if old or new:
            lines.append([name, f"{old:,.7g}", f"{new:,.7g}", f"{new - old:+,.6g}" if new != old else "="])
    return rows("", ["", "before", "after", "change"], lines)


COMMANDS = {"explain": explain_command, "conflict": conflict_command, "what-if": what_if_command}
