"""`ipnext plan`: solve, check, diff, transition, check-transition on files. Mounted through the entry point `ipnext.commands`.

Documents go to standard output or a file, what a person reads to standard error. Exit status: 0 done and valid, 1 a plan or
transition that breaks rules, 2 bad input (one line that names the field), 3 infeasible or refused (the rules are named).
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ipnext.errors import EXIT_FAILURE, EXIT_INFEASIBLE, Infeasible, InvalidInput, IPnextError
from ipnext.model.plan import Plan, PlanDiff
from ipnext.model.rollout import Transition
from ipnext.model.value import Value
from planner.diff import diff
from planner.problem import read_plan, read_problem, read_state, read_transition
from planner.replay import check_transition
from planner.solution import Violation, check
from planner.solve import place, solve
from planner.steps import StepPolicy
from planner.transition import plan_transition

app = typer.Typer(
    name="plan", help="Plan where models run, check plans, and walk from one to the next.", no_args_is_help=True
)


class Form(StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"


class Refresh(StrEnum):
    """How a new generation comes to a placement."""

    IN_PLACE = "in_place"
    REPLACE = "replace"


ProblemFile = Annotated[Path, typer.Argument(metavar="PROBLEM", help="problem.json")]
ProblemOption = Annotated[Path, typer.Option("--problem", metavar="PROBLEM", help="problem.json")]
Target = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here; without it to standard output.")
]
Output = Annotated[Form, typer.Option("--output", "-o", help="How the result is written.")]
Canary = Annotated[float, typer.Option(help="First share of a new generation, above 0, at most 1.")]
MaxStep = Annotated[
    float, typer.Option(help="Largest share of a model's traffic that moves at once, above 0, at most 1.")
]
Hold = Annotated[float, typer.Option(help="Seconds to hold after each wave.")]
RefreshOption = Annotated[
    Refresh, typer.Option(help="replace: units of generations add up; in_place: they share a process.")
]


@app.command("solve")
def solve_command(
    problem: ProblemFile,
    output: Target = None,
    place_models: Annotated[
        list[str] | None,
        typer.Option("--place", metavar="MODEL", help="Place only these; all others stay as they run."),
    ] = None,
) -> None:
    """Find a plan. Demand that cannot be held is left unmet, with the rules that bind."""
    with _told():
        stated = read_problem(problem)
        started = time.perf_counter()
        with _solver_on_stderr():
            plan = place(stated, place_models) if place_models else solve(stated)
        _write(plan, output)
        _summary(plan, time.perf_counter() - started)


@app.command("check")
def check_command(problem: ProblemFile, plan: Annotated[Path, typer.Argument()], output: Output = Form.TABLE) -> None:
    """Check a plan against every rule. Exit status 1 where it breaks one."""
    with _told():
        _report(check(read_problem(problem), read_plan(plan)), output)


@app.command("diff")
def diff_command(
    before: Annotated[Path, typer.Argument()], after: Annotated[Path, typer.Argument()], output: Output = Form.TABLE
) -> None:
    """What changes from one plan.json to another."""
    with _told():
        change = diff(read_plan(before), read_plan(after))
        if output is Form.JSON:
            _write(change, None)
        else:
            _diff_tables(change)


@app.command("transition")
def transition_command(  # noqa: PLR0913 - one option for each field of the policy
    origin: Annotated[Path, typer.Argument(metavar="FROM")],
    to: Annotated[Path, typer.Argument(metavar="TO")],
    problem: ProblemOption,
    *,
    output: Target = None,
    canary: Canary = 0.1,
    max_step: MaxStep = 0.5,
    hold_seconds: Hold = 0.0,
    refresh: RefreshOption = Refresh.REPLACE,
) -> None:
    """Safe waves from one state to another. Exit status 3 where there are none; the document then says why."""
    with _told():
        stated = read_problem(problem)
        policy = _policy(canary, max_step, hold_seconds, refresh)
        policies = {model.model: policy for model in stated.models}
        planned = plan_transition(stated, read_state(origin), read_state(to), policies)
        _write(planned, output)
        _waves(planned)
        if planned.refused is not None:
            _fail(f"refused: {planned.refused}", EXIT_INFEASIBLE)


@app.command("check-transition")
def check_transition_command(
    transition: Annotated[Path, typer.Argument()],
    problem: ProblemOption,
    *,
    output: Output = Form.TABLE,
    canary: Canary = 0.1,
    max_step: MaxStep = 0.5,
    refresh: RefreshOption = Refresh.REPLACE,
) -> None:
    """Check a transition, wave by wave, phase by phase. Exit status 1 where it breaks a rule."""
    with _told():
        stated = read_problem(problem)
        policy = _policy(canary, max_step, 0.0, refresh)
        _report(check_transition(stated, read_transition(transition), {m.model: policy for m in stated.models}), output)


def _policy(canary: float, max_step: float, hold_seconds: float, refresh: Refresh) -> StepPolicy:
    try:
        return StepPolicy(canary=canary, max_step=max_step, hold_seconds=hold_seconds, refresh=refresh.value)
    except ValidationError as error:
        detail = error.errors()[0]
        option = "--" + str(detail["loc"][0]).replace("_", "-")
        msg = f"{option}: {detail['msg']} (given: {detail['input']})"
        raise InvalidInput(msg, field=option, value=detail["input"]) from None


@contextmanager
def _told() -> Iterator[None]:
    """Turns an error of ours into one line on standard error and its exit status."""
    try:
        yield
    except Infeasible as error:
        _fail(f"infeasible: {error.message}", error.exit_status)
    except IPnextError as error:
        _fail(error.message, error.exit_status)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo("error: " + " ".join(message.split()), err=True)
    raise typer.Exit(status)


@contextmanager
def _solver_on_stderr() -> Iterator[None]:
    """HiGHS writes a banner to file descriptor 1, whatever it is told: for that time it is standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _write(value: Value, path: Path | None) -> None:
    """The document, to a file that is whole or not there, or to standard output."""
    text = value.model_dump_json(by_alias=True, indent=2) + "\n"
    if path is None:
        typer.echo(text, nl=False)
        return
    try:
        _replace(path, text)
    except OSError as error:
        msg = f"--output: cannot write {path}: {error.strerror or error}"
        raise InvalidInput(msg, field="--output", value=str(path), allowed=["a file that can be written"]) from None


def _replace(path: Path, text: str) -> None:
    if path.is_dir():
        raise IsADirectoryError(0, "is a directory")
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    written = Path(file.name)
    try:
        written.chmod(0o644)
        written.replace(path)
    except OSError:
        written.unlink(missing_ok=True)
        raise


def _report(violations: Sequence[Violation], output: Form) -> None:
    if output is Form.JSON:
        typer.echo(json.dumps([violation.model_dump() for violation in violations], indent=2))
    elif violations:
        _table(
            "broken rules", ["rule", "where", "what"], [[v.rule, v.subject, v.message] for v in violations], err=False
        )
    else:
        typer.echo("valid: every rule holds")
    if violations:
        raise typer.Exit(EXIT_FAILURE)


def _summary(plan: Plan, seconds: float) -> None:
    figures: Mapping[str, str] = {
        "status": plan.status,
        "objective": f"{plan.objective:.2f} $/h",
        "bound": f"{plan.bound:.2f} $/h ({plan.bound_covers})",
        "gap": f"{plan.gap:.2%}",
        "cost": f"{plan.cost_per_hour:.2f} $/h",
        "replicas": str(sum(item.count for item in plan.replicas)),
        "time": f"{seconds:.1f} s",
    }
    _table("plan", ["", ""], [[name, text] for name, text in figures.items()])
    if plan.unmet:
        rows = [[item.model, item.region, f"{item.qps:g}", ", ".join(item.rules)] for item in plan.unmet]
        _table("unmet demand", ["model", "region", "QPS", "rules that bind"], rows)


def _diff_tables(change: PlanDiff) -> None:
    if change.empty:
        typer.echo("nothing changes")
        return
    replicas = [[r.model, r.part, f"{r.region}/{r.hardware}", str(r.before), str(r.after)] for r in change.replicas]
    _table(f"replicas ({change.moves} started)", ["model", "part", "where", "before", "after"], replicas, err=False)
    traffic = [[t.model, t.origin, t.to, f"{t.before:.4g}", f"{t.after:.4g}"] for t in change.traffic]
    _table("traffic", ["model", "from", "to", "before", "after"], traffic, err=False)
    typer.echo(f"cost {change.cost_per_hour_before:.2f} -> {change.cost_per_hour_after:.2f} $/h")


def _waves(transition: Transition) -> None:
    rows = [
        [str(number), wave.gate, str(len(wave.scale_up)), str(len(wave.route)), str(len(wave.scale_down))]
        for number, wave in enumerate(transition.waves)
    ]
    if rows:
        _table("waves", ["wave", "gate", "scale up", "routes", "scale down"], rows)
    surge = [[item.region, item.hardware, f"{item.units:g}"] for item in transition.surge]
    if surge:
        _table("surge", ["region", "hardware", "units"], surge)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = True) -> None:
    table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
    for row in rows:
        table.add_row(*row)
    Console(stderr=err, markup=False).print(table)
