"""`ipnext plan transition`, `check-transition`: the waves from one state of a fleet to another."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from ipnext.errors import EXIT_INFEASIBLE, InvalidInput
from ipnext.model.planning.admission import Admission
from ipnext.model.planning.transition import Transition
from planner.cli.output import Form, Output, ProblemOption, Target, beside, exit_on_error, fail, rows, write_document
from planner.cli.plan_commands import report
from planner.core.step_policy import StepPolicy
from planner.io.problem import read_problem, read_state, read_transition
from planner.transition.planner import admit
from planner.transition.refusal import join_names
from planner.verify.transition_checker import check_transition


class Refresh(StrEnum):
    """How a placement receives a new generation."""

    IN_PLACE = "in_place"
    REPLACE = "replace"
    SWAP = "swap"


class WhenShort(StrEnum):
    """Behaviour if no order of the waves fits the supply."""

    SURGE = "surge"
    DIP = "dip"
    WAIT = "wait"


Canary = Annotated[float, typer.Option(help="First share of a new generation, above 0, at most 1.")]
MaxStep = Annotated[
    float, typer.Option(help="Largest share of a model's traffic that moves at once, above 0, at most 1.")
]
Hold = Annotated[float, typer.Option(help="Seconds to hold after each wave.")]
RefreshOption = Annotated[
    Refresh,
    typer.Option(
        help="replace: units of generations add up; in_place: they share a process; swap: a process goes over."
    ),
]
WhenShortOption = Annotated[
    WhenShort, typer.Option(help="Where no order fits: dip goes below the traffic; surge and wait refuse and say why.")
]
MaxDip = Annotated[float, typer.Option(help="Fraction of the ready throughput that may be missing with dip, 0 to 1.")]


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
    when_short: WhenShortOption = WhenShort.SURGE,
    max_dip: MaxDip = 0.0,
) -> None:
    """Safe waves from one state to another. Exit status 3 if there are none; the document then says why."""
    with exit_on_error():
        _check_dip(when_short, max_dip)
        stated = read_problem(problem)
        fields = {"canary": canary, "max_step": max_step, "hold_seconds": hold_seconds, "max_dip": max_dip}
        policy = _policy(**fields, refresh=refresh.value, when_short=when_short.value)
        policies = {model.model: policy for model in stated.models}
        planned, admission = admit(stated, read_state(origin), read_state(to), policies)
        write_document(planned, output)
        for table in [*_waves(planned), *_price(admission)]:
            beside(table)
        if planned.refused is not None:
            fail(f"refused: {planned.refused}", EXIT_INFEASIBLE)


def check_transition_command(  # noqa: PLR0913 - one option for each field of the policy
    transition: Annotated[Path, typer.Argument()],
    problem: ProblemOption,
    *,
    output: Output = Form.TABLE,
    canary: Canary = 0.1,
    max_step: MaxStep = 0.5,
    refresh: RefreshOption = Refresh.REPLACE,
    when_short: WhenShortOption = WhenShort.SURGE,
    max_dip: MaxDip = 0.0,
) -> None:
    """Check a transition, wave by wave, phase by phase. Exit status 1 if it breaks a rule."""
    with exit_on_error():
        stated = read_problem(problem)
        fields = {"canary": canary, "max_step": max_step, "max_dip": max_dip}
        policy = _policy(**fields, refresh=refresh.value, when_short=when_short.value)
        report(check_transition(stated, read_transition(transition), {m.model: policy for m in stated.models}), output)


def _check_dip(when_short: WhenShort, max_dip: float) -> None:
    """Check as for a manifest: a dip needs a bound, and a bound needs a dip."""
    if (when_short is WhenShort.DIP) != (max_dip > 0):
        msg = f"--max-dip: goes with --when-short dip and is above 0 then (given: {max_dip:g} with {when_short.value})"
        raise InvalidInput(msg, field="--max-dip", value=max_dip)


def _policy(**fields: Any) -> StepPolicy:
    try:
        return StepPolicy(**fields)
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


def _price(admission: Admission) -> Iterator[Table | str]:
    """Yield the surge, the dips, and the models that it waits for."""
    yield f"admission: {admission.mode}"
    surge = [[item.region, item.hardware, f"{item.units:g}"] for item in admission.surge]
    if surge:
        yield rows("surge", ["region", "hardware", "units"], surge)
    dips = [[dip.model, dip.part, dip.region, f"{dip.fraction:.2%}"] for dip in admission.dips]
    if dips:
        title = "dips" if admission.feasible else "dips that would do instead of the surge"
        yield rows(title, ["model", "part", "region", "missing"], dips)
    swaps = [[s.model, s.part, s.region, str(s.replicas), f"{s.fraction:.2%}"] for s in admission.swaps]
    if swaps:
        yield rows("swaps", ["model", "part", "region", "replicas", "missing for seconds"], swaps)
    if admission.waits_for:
        yield f"waits for: {join_names(admission.waits_for)}"


COMMANDS = {"transition": transition_command, "check-transition": check_transition_command}
