"""Commands that only read: get, describe, events, explain."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ipnext.cli.command import Command, ModelName
from ipnext.cli.commands.drains import drains_table
from ipnext.cli.commands.freezes import freeze_tables, freezes_table
from ipnext.cli.commands.registry.denials import denial_tables, denials_table, read_digest
from ipnext.cli.commands.replans import plan_tables, plans_table, replan_tables, replans_table
from ipnext.cli.output import Form, Output, plain, say, write
from ipnext.cli.session import client_of
from ipnext.cli.tables.changes import change_tables, changes_list, events_table, explanation_tables
from ipnext.cli.tables.generations import generations_table
from ipnext.cli.tables.layouts import layout_picture
from ipnext.cli.tables.lineage import holds_table, snapshots_table
from ipnext.cli.tables.models import model_tables, models_table
from ipnext.cli.tables.owners import owner_tables, owners_table
from ipnext.cli.tables.regions import fleet_tables, regions_table
from ipnext.cli.tables.reports import report_tables
from ipnext.cli.tables.snapshots import snapshot_tables
from ipnext.cli.tables.sources import source_tables, sources_table
from ipnext.cli.tables.stages import stages_table
from ipnext.cli.tables.validators import validators_table
from ipnext.client import Client
from ipnext.client.lists import Listing
from ipnext.errors import InvalidInput, NotFound
from ipnext.model.api.resources import (
    ModelView,
    SnapshotView,
)
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.stages import activity_name
from ipnext.model.planning.transition import TransitionState
from ipnext.model.registry.profile import ProfileView

SHOWN_GENERATIONS = 20
"""Generations, the newest, of which `describe` tells."""


DESCRIBED = (
    *("MODEL", "change CHANGE", "snapshot MODEL PART N", "source MODEL NAME", "plan PLAN", "replan REPLAN"),
    *("freeze NAME", "owner NAME", "denial DIGEST", "report MODEL GENERATION"),
)
"""What `describe` takes."""


class Kind(StrEnum):
    """What can be listed."""

    MODELS = "models"
    CHANGES = "changes"
    PLANS = "plans"
    REPLANS = "replans"
    REGIONS = "regions"
    DRAINS = "drains"
    FLEET = "fleet"
    FREEZES = "freezes"
    DENIALS = "denials"
    GENERATIONS = "generations"
    HOLDS = "holds"
    OWNERS = "owners"
    SNAPSHOTS = "snapshots"
    SOURCES = "sources"
    STAGES = "stages"
    VALIDATORS = "validators"


_LABELLED = (Kind.MODELS, Kind.OWNERS, Kind.SOURCES)
_OF_MODELS = (Kind.CHANGES, Kind.HOLDS, Kind.SOURCES)
_OF_ONE_MODEL = (Kind.SNAPSHOTS, Kind.GENERATIONS)

Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
All = Annotated[bool, typer.Option("--all", help="Without a limit.")]


def get(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    limit: Limit = 50,
    every: All = False,
    owner: Annotated[str | None, typer.Option(help="Only models of this owner.")] = None,
    not_ready: Annotated[bool, typer.Option("--not-ready", help="Only models that are not ready.")] = False,
    search: Annotated[str | None, typer.Option(help="Only models with this text in their name.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="Only with this label; may be repeated."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only those of this model.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """List models, changes, plans, regions, freezes, owners, sources and others."""
    client, most = client_of(context), None if every else limit
    if kind is not Kind.MODELS and (owner or not_ready or search):
        msg = f"get {kind.value}: --owner, --not-ready and --search are for models"
        raise InvalidInput(msg, field="kind", value=kind.value, allowed=(Kind.MODELS.value,))
    labels = _parse_labels(kind, label or [])
    of_model = _parse_model(kind, model)
    if kind is Kind.VALIDATORS:
        validators = client.validators()
        write(validators, output, lambda: validators_table(validators))
        return
    if kind is Kind.STAGES:
        stages = client.stages()
        write(stages, output, lambda: stages_table(stages))
        return
    if kind is Kind.FLEET:
        fleet = client.fleet()
        write(fleet, output, lambda: fleet_tables(fleet))
        return
    if kind is Kind.MODELS:
        ready = False if not_ready else None
        found: Listing[Any] = client.models(owner=owner, ready=ready, search=search, limit=most, labels=labels)
    else:
        found = getattr(client, kind.value)(*of_model, limit=most, **({"labels": labels} if labels else {}))
    write(found, output, lambda: _TABLES[kind](found))
    if found.next is not None:
        say(f"there are more than {limit}: --all lists them all, --limit so many")


def _parse_labels(kind: Kind, given: Sequence[str]) -> Mapping[str, str]:
    if given and kind not in _LABELLED:
        allowed = tuple(each.value for each in _LABELLED)
        msg = f"get {kind.value}: --label is for {', '.join(allowed)}"
        raise InvalidInput(msg, field="kind", value=kind.value, allowed=allowed)
    pairs = [text.partition("=") for text in given]
    for text, (key, equals, _) in zip(given, pairs, strict=True):
        if not key or not equals:
            msg = f"--label: {text!r} is not of the form KEY=VALUE"
            raise InvalidInput(msg, field="label", value=text)
    return {key: value for key, _, value in pairs}


def _parse_model(kind: Kind, model: str | None) -> tuple[str, ...]:
    allowed = tuple(each.value for each in (*_OF_MODELS, *_OF_ONE_MODEL))
    if model is not None and kind.value not in allowed:
        msg = f"get {kind.value}: --model is for {', '.join(allowed)}"
        raise InvalidInput(msg, field="kind", value=kind.value, allowed=allowed)
    if model is None and kind in _OF_ONE_MODEL:
        msg = f"get {kind.value}: --model names the model whose {kind.value} are listed"
        raise InvalidInput(msg, field="model", value="")
    return () if model is None else (model,)


def describe(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar=" | ".join(DESCRIBED),
            help="A model, a snapshot, a source, a change, plan or replan by its id, a freeze, a denial, an owner, a "
            "report.",
            show_default=False,
        ),
    ],
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the graph of the parts that the model is cut into.")
    ] = None,
    output: Output = Form.TABLE,
) -> None:
    """Show all of a model (conditions, traffic, parts, replicas, changes), a change, a plan, a freeze or an owner."""
    client = client_of(context)
    if len(what) == 2 and what[0] in _NAMED:
        read, tables = _NAMED[what[0]]
        found = read(client, what[1])
        write(found, output, lambda: tables(found))
        return
    if len(what) == 3 and what[0] == "source":
        source, versions = client.source(what[1], what[2]), client.source_versions(what[1], what[2], limit=20)
        write(plain(source) | {"newest": plain(versions)}, output, lambda: source_tables(source, versions))
        return
    if len(what) == 3 and what[0] == "report":
        report = client.report(what[1], _parse_number("generation", what[2]))
        write(report, output, lambda: report_tables(report))
        return
    if len(what) == 2 and what[0] == "plan":
        summary = client.plan_summary(what[1])
        change = client.plan_diff(summary.id) if summary.has_documents else None
        write(plain(summary) | {"diff": plain(change)}, output, lambda: plan_tables(summary, change))
        return
    if len(what) == 2 and what[0] == "replan":
        replan = client.replan_status(what[1])
        write(replan, output, lambda: replan_tables(replan))
        return
    if len(what) == 4 and what[0] == "snapshot":
        snapshot, profiles = _snapshot(client, what[1], what[2], what[3])
        whole = plain(snapshot) | {"profiles": plain(profiles)}
        write(whole, output, lambda: snapshot_tables(snapshot, profiles))
        return
    if len(what) != 1:
        msg = f"describe: {' '.join(what)!r} is not known; allowed: {', '.join(DESCRIBED)}"
        raise InvalidInput(msg, field="what", value=" ".join(what), allowed=DESCRIBED)
    model = what[0]
    view, changes = client.model(model), client.changes(model, limit=10)
    generations = client.generations(model, limit=SHOWN_GENERATIONS)
    running = [t for t in client.transitions(model, limit=1) if t.state is TransitionState.RUNNING]
    stages = _stage_results(client, model, view.status.target_generation)
    if picture is not None:
        _draw(view, picture)
    whole = plain(view) | {"generations": plain(generations), "changes": plain(changes), "running": plain(running)}
    whole |= {"stages": plain(stages)}
    write(whole, output, lambda: model_tables(view, generations, changes, running, stages))


def _stage_results(client: Client, model: str, generation: int | None) -> tuple[CheckResult, ...]:
    """Return the results of stages of other distributions for the wanted generation."""
    if generation is None:
        return ()
    try:
        report = client.report(model, generation)
    except NotFound:
        return ()
    return tuple(check for check in report.checks if check.check.startswith(activity_name("")))


def _snapshot(client: Client, model: str, part: str, given: str) -> tuple[SnapshotView, Sequence[ProfileView]]:
    snapshot = _parse_number("snapshot", given)
    profiles = client.profiles(model, part, snapshot)
    return client.snapshot(model, part, snapshot), profiles


def _parse_number(of: str, given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        msg = f"describe: {given!r} is no number of a {of}; allowed: a whole number from 1"
        raise InvalidInput(msg, field="what", value=given)
    return int(given)


def _draw(view: ModelView, picture: Path) -> None:
    if view.layout is None:
        msg = (
            f"--picture: {view.status.model!r} serves no generation that is cut; "
            "its manifest has no spec.split, or nothing serves"
        )
        raise InvalidInput(msg, field="picture", value=str(picture))
    try:
        picture.write_text(layout_picture(view.layout), encoding="utf-8")
    except OSError as error:
        msg = f"--picture: {str(picture)!r} can't be written: {error.strerror}"
        raise InvalidInput(msg, field="picture", value=str(picture)) from error


def events(
    context: typer.Context,
    model: ModelName,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the newest.")] = 50,
    output: Output = Form.TABLE,
) -> None:
    """Show what happened to a model, oldest first."""
    client = client_of(context)
    client.model(model)
    found = tuple(client.events(model, limit=limit))[::-1]
    write(found, output, lambda: events_table(found))


def explain(context: typer.Context, model: ModelName, output: Output = Form.TABLE) -> None:
    """Explain why a model is, or is not, ready: one chain down to the cause, and what to do."""
    explanation = client_of(context).explain(model)
    write(explanation, output, lambda: explanation_tables(explanation))


_TABLES: Mapping[Kind, Callable[[Iterable[Any]], Table]] = {
    Kind.MODELS: models_table,
    Kind.CHANGES: changes_list,
    Kind.PLANS: plans_table,
    Kind.REPLANS: replans_table,
    Kind.REGIONS: regions_table,
    Kind.DRAINS: drains_table,
    Kind.FREEZES: freezes_table,
    Kind.DENIALS: denials_table,
    Kind.GENERATIONS: generations_table,
    Kind.HOLDS: holds_table,
    Kind.SNAPSHOTS: snapshots_table,
    Kind.OWNERS: owners_table,
    Kind.SOURCES: sources_table,
}

_NAMED: Mapping[str, tuple[Callable[[Client, str], Any], Callable[[Any], Iterable[Table | str]]]] = {
    "change": (Client.change, change_tables),
    "freeze": (Client.freeze, freeze_tables),
    "owner": (Client.owner, owner_tables),
    "denial": (lambda client, digest: client.denial(read_digest(digest)), denial_tables),
}
"""What `describe` shows by one name."""

COMMANDS = (
    Command(
        "get",
        "List models, changes, plans, regions, freezes, owners, sources and others.",
        get,
    ),
    Command("describe", "Show all of one model, change, snapshot, source, plan, replan, freeze or owner.", describe),
    Command("events", "Show what happened to a model.", events),
    Command("explain", "Explain why a model is, or is not, ready.", explain),
)
