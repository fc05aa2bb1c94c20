"""Commands that ask for a change: apply, publish, rollback, repair, replan, delete; and wait."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.command import Command, ModelName, Timeout, Wait
from ipnext.cli.commands.replans import replan
from ipnext.cli.commands.wait_conditions import ForChange, ForCondition, target_of
from ipnext.cli.output import Form, Output, change_line, rows, say, write
from ipnext.cli.session import client_of
from ipnext.client import Client
from ipnext.client.calls.publications import SERVER_SIDE
from ipnext.errors import EXIT_FAILURE, InvalidInput
from ipnext.model.access.owner import OwnerView
from ipnext.model.api.resources import ChangeView, FleetView, ModelApplied
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import ConditionType
from ipnext.model.manifest.freeze import FreezeView
from ipnext.model.registry.registry import ArtifactFile


def apply(
    context: typer.Context,
    file: Annotated[
        list[str],
        typer.Option("--file", "-f", help="YAML file with one or more manifests; - is stdin. May be given repeatedly."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate and show what would change; write nothing.")
    ] = False,
    output: Output = Form.TABLE,
) -> None:
    """Apply manifests of kind Model, Fleet, Owner and Freeze."""
    applied = client_of(context).apply("\n---\n".join(map(_text_of, file)), dry_run=dry_run)
    write(applied, output, lambda: _applied_table(applied, dry_run=dry_run))
    for each in applied:
        if isinstance(each, FleetView) and not dry_run:
            say("the fleet is applied; if it changed, a replan follows by itself: `ipnext get replans`")
        if isinstance(each, OwnerView):
            for warning in each.warnings:
                say(f"owner {each.manifest.name}: {warning}")
        if isinstance(each, ModelApplied) and each.restored and not dry_run:
            say(
                f"{each.model} was retired: nothing serves until you publish it (`ipnext publish {each.model} "
                "--part NAME=DIR`) "
                f"or go back to a generation that served (`ipnext rollback {each.model}`)"
            )
        if isinstance(each, ModelApplied) and each.change is not None:
            say(f"{change_line(each.change)}; watch it with `ipnext wait {each.model} --for change={each.change.id}`")


def publish(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    model: ModelName,
    part: Annotated[
        list[str],
        typer.Option(
            "--part",
            metavar="NAME[,NAME]=DIR|URI",
            help="Snapshot or checkpoint directory, or file:// or s3:// uri; parts of the same content with commas.",
        ),
    ],
    change_id: Annotated[str | None, typer.Option(help="Repeat with the same id: it is one change.")] = None,
    override_freeze: Annotated[
        bool, typer.Option("--override-freeze", help="Pass every freeze; needs --reason, which the audit keeps.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why it passes freezes.")] = None,
    trained_at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When the training of the snapshots ended, such as 2026-12-01T08:00:00Z; "
            "else training.json in each directory says so.",
        ),
    ] = None,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Publish new snapshots of one or more parts. A model of one part takes a bare directory or uri."""
    why = _override(reason, asked=override_freeze)
    client = client_of(context)
    parts = _parts(client, model, part)
    change = client.publish(
        model,
        parts,
        change_id=change_id,
        override_freeze=why,
        trained_at=_moment(trained_at),
        on_upload=_uploading,
    )
    _finish(client, change, wait=wait, timeout=timeout, output=output)


def rollback(
    context: typer.Context,
    model: ModelName,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            min=1,
            help="Generation; else the one that serves while another rolls out, else the newest other that has served.",
        ),
    ] = None,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Go back to a former generation."""
    client = client_of(context)
    _finish(client, client.rollback(model, generation=to), wait=wait, timeout=timeout, output=output)


def repair(
    context: typer.Context,
    model: ModelName,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Bring users and replicas that were left on another generation back to the one that serves."""
    client = client_of(context)
    _finish(client, client.repair(model), wait=wait, timeout=timeout, output=output)


def delete(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(metavar="MODEL | owner NAME", help="A model, or an owner.", show_default=False),
    ],
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Retire a model: take it out of serving and free its capacity. Its history stays.

    Or delete an owner without models.
    """
    client = client_of(context)
    if len(what) == 2 and what[0] == "owner":
        owner = client.delete_owner(what[1])
        write(owner, output, lambda: [f"owner {what[1]} is deleted, with its quotas and its members' roles"])
        return
    if len(what) != 1:
        msg = f"delete: {' '.join(what)!r} is not known; allowed: MODEL, owner NAME"
        raise InvalidInput(msg, field="what", value=" ".join(what), allowed=("MODEL", "owner NAME"))
    _finish(client, client.delete(what[0]), wait=wait, timeout=timeout, output=output)


def wait(
    context: typer.Context,
    model: ModelName,
    what: Annotated[
        str,
        typer.Option("--for", metavar="CONDITION[=STATUS]|change=ID", help="Condition or change to wait for."),
    ] = "ready",
    timeout: Timeout = 600.0,
    output: Output = Form.TABLE,
) -> None:
    """Wait for a model's condition to be true or another status (Ready, UpToDate=False), or for a change to end."""
    target, client = target_of(what), client_of(context)
    if isinstance(target, ForChange):
        change = client.change(target.change_id)
        if change.model != model:
            msg = f"--for: change {change.id!r} is one of model {change.model!r}; allowed: a change of {model!r}"
            raise InvalidInput(msg, field="for", value=what)
        _finish(client, change, wait=True, timeout=timeout, output=output)
        return
    client.model(model)
    view = client.wait_condition(model, target.kind, target.status, timeout_seconds=timeout)
    state = "ready" if target == ForCondition(ConditionType.READY, "True") else f"{target.kind}={target.status}"
    line = (view.status.model, state, view.status.serving_generation)
    write(view, output, lambda: rows("", ("model", "state", "serving"), [line]))


def _text_of(file: str) -> str:
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} can't be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'}"
        raise InvalidInput(msg, field="file", value=file) from error


def _parts(client: Client, model: str, given: Sequence[str]) -> dict[str, Path | str]:
    """`NAME=SOURCE` items as a mapping. A bare source belongs to the only part."""
    known = tuple(part.name for part in client.model(model).manifest.spec.parts)
    parts: dict[str, Path | str] = {}
    for item in given:
        name, equals, source = item.partition("=")
        if not equals or "/" in name:
            name, source = (known[0] if len(known) == 1 else ""), item
        for each in name.split(","):
            if each not in known or not source:
                msg = (
                    f"--part: {item!r} is not NAME=DIR or NAME=URI with a part of {model!r}; parts: {', '.join(known)}"
                )
                raise InvalidInput(msg, field="part", value=item, allowed=known)
            if each in parts:
                msg = f"--part: {each!r} is given twice"
                raise InvalidInput(msg, field="part", value=each)
            parts[each] = source if source.startswith(SERVER_SIDE) else Path(source)
    return parts


def _moment(text: str | None) -> datetime | None:
    """Return a time with its zone. Raises InvalidInput."""
    if text is None:
        return None
    with suppress(ValueError):
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found
    msg = f"--trained-at: {text!r} is no time with its zone; allowed: such as 2026-12-01T08:00:00Z"
    raise InvalidInput(msg, field="trained-at", value=text)


def _override(reason: str | None, *, asked: bool) -> str | None:
    """Return the reason for which a publish passes freezes. Raises InvalidInput for one without the other."""
    given = (reason or "").strip()
    if asked != bool(given):
        msg = "--override-freeze: needs a --reason, such as --reason 'security fix'"
        if not asked:
            msg = "--reason: tells why a publish passes freezes; give --override-freeze too, or leave it out"
        raise InvalidInput(msg, field="reason", value=reason)
    return given or None


def _uploading(file: ArtifactFile) -> None:
    say(f"uploading {file.path} ({file.size_bytes:,} bytes)")


def _finish(client: Client, change: ChangeView, *, wait: bool, timeout: float, output: Form) -> None:
    """Write the change; with `wait`, its end. Exit status 1 if it ended otherwise than done."""
    if wait:
        change = client.wait_change(change.id, timeout, on_update=lambda c: say(change_line(c)))
    write(change, output, lambda: _change_table(change))
    if change.state.final and change.state is not ChangeState.DONE:
        say(f"error: {change_line(change)}; try `ipnext explain {change.model}`")
        raise typer.Exit(EXIT_FAILURE)


def _change_table(change: ChangeView) -> Table:
    line = (change.id, change.model, change.kind.value, change.generation, change.state.value, change.run_url)
    return rows("", ("change", "model", "kind", "generation", "state", "run"), [line])


def _applied_table(
    applied: Sequence[ModelApplied | FleetView | FreezeView | OwnerView], *, dry_run: bool
) -> Sequence[Table | str]:
    lines = []
    tables: list[Table | str] = []
    for each in applied:
        if isinstance(each, FleetView):
            lines.append(("fleet", "fleet", each.version, "would be applied" if dry_run else "applied"))
            continue
        if isinstance(each, FreezeView | OwnerView):
            kind = each.manifest.kind.lower()
            lines.append((kind, each.manifest.name, each.version, "would be applied" if dry_run else "applied"))
            continue
        lines.append(("model", each.model, each.version, _verb(each, dry_run=dry_run)))
        if each.fields and dry_run:
            fields = ((f.field, _short(f.before), _short(f.after)) for f in each.fields)
            tables.append(rows(f"\n{each.model}", ("field", "before", "after"), fields))
    return [rows("", ("kind", "name", "version", "state"), lines), *tables]


def _verb(applied: ModelApplied, *, dry_run: bool) -> str:
    if applied.restored:
        return "would be brought back from retirement" if dry_run else "brought back from retirement"
    return ("would change" if dry_run else "changed") if applied.changed else "unchanged"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


COMMANDS = (
    Command("apply", "Apply manifests of kind Model, Fleet, Owner and Freeze.", apply),
    Command("publish", "Publish new snapshots.", publish),
    Command("rollback", "Go back to a former generation.", rollback),
    Command("repair", "Bring the serving generation about again.", repair),
    Command("replan", "Plan the whole fleet again.", replan),
    Command("wait", "Wait for a condition of a model, or for the end of a change.", wait),
    Command("delete", "Retire a model, or delete an owner.", delete),
)
