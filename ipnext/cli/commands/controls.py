"""Commands that speak to a rollout under way: pause, resume, approve, promote, abort."""

from typing import Annotated

import typer

from ipnext.cli.command import Command, ModelName
from ipnext.cli.output import Form, Output, rows, write
from ipnext.cli.session import client_of
from ipnext.model.lifecycle.changes.controls import ControlAnswer

Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; it stands in the model's events.")]


def pause(context: typer.Context, model: ModelName, reason: Reason = "", output: Output = Form.TABLE) -> None:
    """Pause a model: what runs stops at its next step, nothing further begins. A rollback passes."""
    _write_answer(client_of(context).pause(model, reason=reason), output)


def resume(context: typer.Context, model: ModelName, reason: Reason = "", output: Output = Form.TABLE) -> None:
    """Go on where the model was paused."""
    _write_answer(client_of(context).resume(model, reason=reason), output)


def approve(context: typer.Context, model: ModelName, reason: Reason = "", output: Output = Form.TABLE) -> None:
    """Let the wave go on that waits for an approval (spec.rollout.approval)."""
    _write_answer(client_of(context).approve(model, reason=reason), output)


def promote(context: typer.Context, model: ModelName, reason: Reason = "", output: Output = Form.TABLE) -> None:
    """Skip the holds and approvals that are left. Gates and capacity are kept."""
    _write_answer(client_of(context).promote(model, reason=reason), output)


def abort(context: typer.Context, model: ModelName, reason: Reason = "", output: Output = Form.TABLE) -> None:
    """Stop the change that runs: what it moved goes back."""
    _write_answer(client_of(context).abort(model, reason=reason), output)


def _write_answer(answer: ControlAnswer, output: Form) -> None:
    line = (answer.model, answer.action.value, answer.change_id or "", answer.message)
    write(answer, output, lambda: rows("", ("model", "action", "change", "message"), [line]))


COMMANDS = (
    Command("pause", "Pause a model's changes.", pause),
    Command("resume", "Go on where a model was paused.", resume),
    Command("approve", "Let the wave go on that waits for an approval.", approve),
    Command("promote", "Skip the holds and approvals that are left.", promote),
    Command("abort", "Stop the change that runs: what it moved goes back.", abort),
)
