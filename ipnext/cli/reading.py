"""Commands that only read: get, describe, events, explain."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.command import Command, ModelName
from ipnext.cli.layouts import layout_picture, layout_tables
from ipnext.cli.output import Form, Output, age, number, plain, rows, write
from ipnext.cli.planning import plan_tables, plans_table, replans_table
from ipnext.cli.session import client_of
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle import Change
from ipnext.model.registry import Generation
from ipnext.model.resource import (
    ChangeView,
    EventView,
    Explanation,
    FleetView,
    ModelView,
    RegionView,
)
from ipnext.model.status import ConditionType


class Kind(StrEnum):
    """What can be listed."""

    MODELS = "models"
    PLANS = "plans"
    REPLANS = "replans"
    REGIONS = "regions"
    FLEET = "fleet"


def get(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    output: Output = Form.TABLE,
) -> None:
    """List models, plans, replans, regions or the fleet."""
    client = client_of(context)
    if kind is Kind.MODELS:
        models = client.models()
        write(models, output, lambda: models_table(models))
    elif kind is Kind.PLANS:
        plans = client.plans()
        write(plans, output, lambda: plans_table(plans))
    elif kind is Kind.REPLANS:
        replans = client.replans()
        write(replans, output, lambda: replans_table(replans))
    elif kind is Kind.REGIONS:
        regions = client.regions()
        write(regions, output, lambda: regions_table(regions))
    else:
        fleet = client.fleet()
        write(fleet, output, lambda: fleet_tables(fleet))


def describe(
    context: typer.Context,
    what: Annotated[
        list[str], typer.Argument(metavar="MODEL | plan PLAN", help="A model, or a plan by its id.", show_default=False)
    ],
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the graph of the parts that the model is cut into.")
    ] = None,
    output: Output = Form.TABLE,
) -> None:
    """Show all of one model (conditions, traffic, parts, replicas, generations, changes) or of one plan."""
    client = client_of(context)
    if len(what) == 2 and what[0] == "plan":
        summary = client.plan_summary(what[1])
        change = client.plan_diff(summary.id) if summary.has_documents else None
        write(plain(summary) | {"diff": plain(change)}, output, lambda: plan_tables(summary, change))
        return
    if len(what) != 1:
        msg = f"describe: {' '.join(what)!r} is not known; allowed: MODEL, plan PLAN"
        raise InvalidInput(msg, field="what", value=" ".join(what), allowed=("MODEL", "plan PLAN"))
    model = what[0]
    view, generations, changes = client.model(model), client.generations(model), client.changes(model, limit=10)
    if picture is not None:
        _draw(view, picture)
    whole = plain(view) | {"generations": plain(generations), "changes": plain(changes)}
    write(whole, output, lambda: model_tables(view, generations, changes))


def _draw(view: ModelView, picture: Path) -> None:
    if view.layout is None:
        msg = f"--picture: {view.status.model!r} serves no generation that is cut; its manifest has no spec.split, or nothing serves"
        raise InvalidInput(msg, field="picture", value=str(picture))
    try:
        picture.write_text(layout_picture(view.layout), encoding="utf-8")
    except OSError as error:
        msg = f"--picture: {str(picture)!r} can't be written: {error.strerror}"
        raise InvalidInput(msg, field="picture", value=str(picture)) from error


def events(
    context: typer.Context,
    model: ModelName,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest.")] = 50,
    output: Output = Form.TABLE,
) -> None:
    """Show what happened to a model, oldest first."""
    client = client_of(context)
    client.model(model)
    found = tuple(reversed(client.events(model, limit=limit)))
    write(found, output, lambda: events_table(found))


def explain(context: typer.Context, model: ModelName, output: Output = Form.TABLE) -> None:
    """Explain why a model is, or is not, ready: one chain down to the cause, and what to do."""
    explanation = client_of(context).explain(model)
    write(explanation, output, lambda: explanation_tables(explanation))


def models_table(models: Iterable[ModelView]) -> Table:
    """One line for each model."""
    heads = ("model", "ready", "reason", "serving", "target", "replicas", "regions", "age")
    return rows("", heads, (_model_line(view) for view in models))


def regions_table(regions: Iterable[RegionView]) -> Table:
    """One line for each hardware kind of each region."""
    lines = (
        (
            r.region,
            "yes" if r.reachable else "no",
            item.hardware,
            *_use(item.units, item.used, item.free),
            len(r.replicas),
        )
        for r in regions
        for item in r.supply
    )
    return rows("", ("region", "reachable", "hardware", "units", "used", "free", "replicas in region"), lines)


def fleet_tables(fleet: FleetView) -> Iterable[Table | str]:
    """Supply, round trips and owners."""
    spec = fleet.spec
    yield f"fleet, version {fleet.version}, applied {age(fleet.updated_at)} ago\n"
    supply = ((s.region, s.hardware, number(s.units), number(s.unit_cost)) for s in spec.supply)
    yield rows("supply", ("region", "hardware", "units", "$/h each"), supply)
    trips = ((name, *map(number, row)) for name, row in zip(spec.regions, spec.rtt_ms, strict=True))
    yield rows("\nround trip in ms, from users in a row's region", ("", *spec.regions), trips)
    if spec.owners:
        lines = ((o.owner, "no limit" if o.budget_per_hour is None else number(o.budget_per_hour)) for o in spec.owners)
        yield rows("\nowners", ("owner", "$/h"), lines)


def model_tables(
    view: ModelView, generations: Iterable[Generation], changes: Iterable[ChangeView]
) -> Iterable[Table | str]:
    """All of one model."""
    status, spec = view.status, view.manifest.spec
    yield f"{status.model}: {spec.task}, {spec.sync.policy}, owner {view.manifest.metadata.owner}, version {view.version}"
    serving = "nothing" if status.serving_generation is None else f"generation {status.serving_generation}"
    yield f"serves {serving}; wanted: {status.target_generation or 'nothing yet'}; plan {status.plan_id or 'none'}"
    if status.unreachable_regions:
        yield f"does not answer: {', '.join(status.unreachable_regions)}"
    lines = (
        (c.type.value, c.status, c.reason.value, age(c.last_transition_time), c.message) for c in status.conditions
    )
    yield rows("\nconditions", ("type", "status", "reason", "since", "message"), lines)
    shares = (
        (region, s.to, s.generation, f"{s.fraction:.1%}") for region, all_ in status.traffic.items() for s in all_
    )
    yield rows("\ntraffic", ("users in", "served in", "generation", "share"), shares)
    if view.layout is not None:
        yield from layout_tables(view.layout, f"parts of generation {status.serving_generation}")
    wanted = (
        (d.key.part, d.key.region, d.key.hardware, d.wanted, d.ready, _list(d.generations)) for d in view.deployments
    )
    yield rows("\ndeployments", ("part", "region", "hardware", "wanted", "ready", "generations"), wanted)
    replicas = (
        (r.id, r.phase.value, _list(r.ready), r.restarts, "; ".join(f.message for f in r.failures) or r.message)
        for r in status.replicas
    )
    yield rows("\nreplicas", ("replica", "phase", "answers for", "restarts", "message"), replicas)
    yield generations_table(generations)
    yield changes_table(changes)


def generations_table(generations: Iterable[Generation]) -> Table:
    """One line for each generation."""
    lines = (
        (g.number, g.state.value, _pairs(g), age(g.created_at), ": ".join(t for t in (g.reason, g.message) if t))
        for g in generations
    )
    return rows("\ngenerations", ("generation", "state", "snapshots", "age", "why"), lines)


def changes_table(changes: Iterable[ChangeView]) -> Table:
    """One line for each change."""
    lines = ((c.id, c.kind.value, c.generation, c.state.value, age(c.created_at), _why(c), c.run_url) for c in changes)
    return rows("\nchanges", ("change", "kind", "generation", "state", "age", "why", "run"), lines)


def events_table(events: Iterable[EventView]) -> Table:
    """One line for each event."""
    return rows("", ("age", "what", "message"), ((age(e.at), e.kind, e.message) for e in events))


def explanation_tables(explanation: Explanation) -> Iterable[Table | str]:
    """The chain, then the advice."""
    ready = "ready" if explanation.ready else "not ready"
    yield f"{explanation.model} is {ready}: {explanation.reason.value}: {explanation.message}\n"
    steps = ((step.level, step.subject, step.state, step.message) for step in explanation.chain)
    yield rows("", ("where", "what", "state", ""), steps)
    yield f"\n{explanation.advice}"


def _model_line(view: ModelView) -> tuple[object, ...]:
    status = view.status
    ready = next((c for c in status.conditions if c.type is ConditionType.READY), None)
    replicas = f"{sum(d.ready for d in view.deployments)}/{sum(d.wanted for d in view.deployments)}"
    regions = ",".join(sorted({d.key.region for d in view.deployments if d.wanted}))
    state = (ready.status, ready.reason.value) if ready else ("Unknown", "NotPublished")
    targets = (status.serving_generation, status.target_generation)
    return (status.model, *state, *targets, replicas, regions, age(view.created_at))


def _use(units: float, used: float, free: float) -> tuple[str, str, str]:
    return number(units), number(used), number(free)


def _list(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _pairs(generation: Generation) -> str:
    pairs = " ".join(f"{part}={snapshot}" for part, snapshot in generation.snapshots.items())
    return pairs if generation.layout is None else f"{pairs} (in {len(generation.layout.parts)} parts)"


def _why(change: Change) -> str:
    return ": ".join(text for text in (change.reason.value if change.reason else "", change.message) if text)


COMMANDS = (
    Command("get", "List models, plans, replans, regions or the fleet.", get),
    Command("describe", "Show all of one model or plan.", describe),
    Command("events", "Show what happened to a model.", events),
    Command("explain", "Explain why a model is, or is not, ready.", explain),
)
