"""`ipnext plan transition`, `check-transition`: the waves from one state of a fleet to another."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from ipnext.errors import EXIT_INFEASIBLE, InvalidInput
from ipnext.model.rollout import Transition
from planner.commands.plans import report
from planner.commands.writing import Form, Output, ProblemOption, Target, beside, fail, rows, told, write_document
from planner.problem import read_problem, read_state, read_transition
from planner.replay import check_transition
from planner.steps import StepPolicy
from planner.transition import plan_transition


class Refresh(StrEnum):
    """How a new generation comes to a placement."""

    IN_PLACE = "in_place"
    REPLACE = "replace"


Canary = Annotated[float, typer.Option(help="First share of a new generation, above 0, at most 1.")]
MaxStep = Annotated[
    float, typer.Option(help="Largest share of a model's traffic that moves at once, above 0, at most 1.")
]
Hold = Annotated[float, typer.Option(help="Seconds to hold after each wave.")]
RefreshOption = Annotated[
    Refresh, typer.Option(help="replace: units of generations add up; in_place: they share a process.")
]


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
    with told():
        stated = read_problem(problem)
        policy = _policy(canary, max_step, hold_seconds, refresh)
        policies = {model.model: policy for model in stated.models}
        planned = plan_transition(stated, read_state(origin), read_state(to), policies)
        write_document(planned, output)
        for table in _waves(planned):
            beside(table)
        if planned.refused is not None:
            fail(f"refused: {planned.refused}", EXIT_INFEASIBLE)


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
    with told():
        stated = read_problem(problem)
        policy = _policy(canary, max_step, 0.0, refresh)
        report(check_transition(stated, read_transition(transition), {m.model: policy for m in stated.models}), output)


def _policy(canary: float, max_step: float, hold_seconds: float, refresh: Refresh) -> StepPolicy:
    try:
        return StepPolicy(canary=canary, max_step=max_step, hold_seconds=hold_seconds, refresh=refresh.value)
    except ValidationError as error:
        detail = error.errors()[0]
        option = "--" + str(detail["loc"][0]).replace("_", "-")
        msg = f"{option}: {detail['msg']} (given: {detail['input']})"
        raise InvalidInput(msg, field=option, value=detail["input"]) from None


def _waves(transition: Transition) -> Iterator[Table]:
    lines = [
        [number, wave.gate, len(wave.scale_up), len(wave.route), len(wave.scale_down)]
        for number, wave in enumerate(transition.waves)
    ]
    if lines:
        yield rows("waves", ["wave", "gate", "scale up", "routes", "scale down"], lines)
    surge = [[item.region, item.hardware, f"{item.units:g}"] for item in transition.surge]
    if surge:
        yield rows("surge", ["region", "hardware", "units"], surge)


COMMANDS = {"transition": transition_command, "check-transition": check_transition_command}
