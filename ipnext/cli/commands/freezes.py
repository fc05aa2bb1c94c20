"""Freezes on the command line: `freeze`, `unfreeze`, `override`, and what `get` and `describe` show of them."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, rows, say, write
from ipnext.cli.session import client_of
from ipnext.errors import InvalidInput
from ipnext.model.manifest.freeze import FreezeManifest, FreezePeriod, FreezeView
from ipnext.model.manifest.parser import parse_manifest

_LENGTH = re.compile(r"^([1-9][0-9]{0,4})([mhdw])$")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_TIMES = ("2026-12-27T06:00", "2026-12-27T05:00Z", "90m", "6h", "3d")
_NAMED = 40

Reason = Annotated[str, typer.Option("--reason", help="Why, in words that others read.", show_default=False)]


def freeze(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    until: Annotated[
        str,
        typer.Option(help="When it ends: a time (without an offset: of this machine), or how long: 90m, 6h, 3d, 2w."),
    ],
    reason: Reason,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Name of the model, or a pattern.", show_default=False)
    ] = None,
    owner: Annotated[list[str] | None, typer.Option(help="Only models of this owner. May be repeated.")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Only models that touch this region.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the freeze; else made of what is frozen.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Hold back publishes, applies and moves from now on. The same target again replaces its freeze."""
    targets = ((model,) if model else ()) + tuple(owner or ()) + tuple(region or ())
    if not targets:
        msg = "freeze: nothing is named; allowed: MODEL ('*' is all), --owner, --region"
        raise InvalidInput(msg, field="model", allowed=("MODEL", "--owner", "--region"))
    now = datetime.now(UTC)
    window = {"start": _written(now), "end": _written(end_of(until, now))}
    scope = {"models": [model] if model else [], "owners": owner or [], "regions": region or []}
    manifest = _manifest(name or _name_of(targets), {"reason": reason, "windows": [window], "scope": scope})
    client = client_of(context)
    if model and not set(model) & set("*?["):
        client.model(model)  # a name that is not known would freeze nothing
    view = client.put_freeze(manifest)
    write(view, output, lambda: freezes_table([view]))
    say(f"rollbacks pass; `ipnext unfreeze {manifest.name}` lifts it, `ipnext override CHANGE` lets one change through")


def unfreeze(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the freeze.", show_default=False)],
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the audit.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Lift a freeze: what waits for it alone goes on at once."""
    view = client_of(context).delete_freeze(name, reason=reason)
    write(view, output, lambda: [f"freeze {name} is lifted"])


def override(
    context: typer.Context,
    change: Annotated[str, typer.Argument(metavar="CHANGE", help="Id of the change.", show_default=False)],
    reason: Reason,
    check: Annotated[
        str | None, typer.Option(metavar="NAME", help="A check of its validation that may refuse; else freezes.")
    ] = None,
    output: Output = Form.TABLE,
) -> None:
    """Let one change through every freeze, or past a check. Who, when and why stands in `ipnext audit list`."""
    client = client_of(context)
    given = client.override_freezes(change, reason) if check is None else client.override_check(change, check, reason)
    passes = f"the check {given.check}" if given.check else ", ".join(given.freezes) or "no freeze that binds it now"
    again = f"; it is carried out again as {given.again}" if given.again else ""
    told = f"change {given.change_id} of {given.model} passes {passes}; by {given.who}: {given.reason}{again}"
    write(given, output, lambda: [told])


def freezes_table(freezes: Iterable[FreezeView]) -> Table:
    """One line for each freeze."""
    heads = ("freeze", "for", "holds back", "in force until", "next", "reason")
    lines = ((f.manifest.name, _scope(f), ",".join(f.manifest.spec.kinds), *_times(f), _reason(f)) for f in freezes)
    return rows("", heads, lines)


def freeze_tables(view: FreezeView) -> Iterable[Table | str]:
    """All of one freeze."""
    yield f"freeze {view.manifest.name}, version {view.version}, owner {view.manifest.metadata.owner}: {_reason(view)}"
    yield f"holds back {', '.join(view.manifest.spec.kinds)} of {_scope(view)}; a rollback always passes"
    yield f"in force until {_time(view.in_force.end)}" if view.in_force else "not in force now"
    lines = ((_time(w.start), _time(w.end), _length(w)) for w in view.next)
    yield rows("\nnext windows", ("from", "until", "length"), lines)


def end_of(text: str, now: datetime) -> datetime:
    """When a freeze ends that begins now. InvalidInput names what is allowed."""
    found = _LENGTH.match(text)
    try:
        end = now + int(found[1]) * _UNITS[found[2]] if found else datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        msg = f"--until: {text!r} is no time; allowed: {', '.join(_TIMES)}"
        raise InvalidInput(msg, field="until", value=text, allowed=_TIMES) from error
    if end <= now + timedelta(seconds=1):
        msg = f"--until: {text!r} ({_time(end)}) has passed; allowed: a later time, or a length such as 6h"
        raise InvalidInput(msg, field="until", value=text, allowed=_TIMES)
    return end


def _manifest(name: str, spec: Mapping[str, object]) -> FreezeManifest:
    document = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": name}, "spec": spec}
    manifest = parse_manifest(document)
    assert isinstance(manifest, FreezeManifest)  # noqa: S101 - by its kind
    return manifest


def _written(moment: datetime) -> datetime:
    """UTC as a manifest has it: without an offset, in whole seconds."""
    return moment.astimezone(UTC).replace(tzinfo=None, microsecond=0)


def _name_of(targets: Iterable[str]) -> str:
    text = "-".join(targets)
    clean = re.sub(r"[^a-z0-9-]", "", text)[:_NAMED].strip("-")
    mark = "" if clean == text else f"-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return f"hold-{clean}".strip("-") + mark


def _scope(view: FreezeView) -> str:
    scope = view.manifest.spec.scope
    named = {"models": scope.models, "owners": scope.owners, "regions": scope.regions}
    return "; ".join(f"{what} {', '.join(names)}" for what, names in named.items() if names) or "all models"


def _reason(view: FreezeView) -> str:
    return view.manifest.spec.reason


def _times(view: FreezeView) -> tuple[str, str]:
    following = next(iter(view.next), None)
    return (_time(view.in_force.end) if view.in_force else "", _time(following.start) if following else "")


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _length(window: FreezePeriod) -> str:
    return str(window.end - window.start)


COMMANDS = (
    Command("freeze", "Hold back changes of models for some time.", freeze),
    Command("unfreeze", "Lift a freeze.", unfreeze),
    Command("override", "Let one change through every freeze, or past a check.", override),
)
