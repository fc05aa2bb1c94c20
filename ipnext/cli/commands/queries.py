"""Commands that only read: get, describe, events, explain."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ipnext.cli.command import Command, ModelName
from ipnext.cli.commands.denials import denial_tables, denials_table, read_digest
from ipnext.cli.commands.drains import drains_table
from ipnext.cli.commands.freezes import freeze_tables, freezes_table
from ipnext.cli.commands.replans import plan_tables, plans_table, replan_tables, replans_table
from ipnext.cli.output import Form, Output, age, number, plain, rows, say, write
from ipnext.cli.session import client_of
from ipnext.cli.tables.freshness import freshness_table, times_of
from ipnext.cli.tables.layouts import layout_picture, layout_tables
from ipnext.cli.tables.lineage import derivation_line, holds_table, snapshots_table
from ipnext.cli.tables.owners import owner_tables, owners_table
from ipnext.cli.tables.profiles import profile_tables
from ipnext.cli.tables.regions import fleet_tables, regions_table
from ipnext.cli.tables.reports import report_tables
from ipnext.cli.tables.sources import source_tables, sources_table
from ipnext.cli.tables.stages import shadow_table, stage_results_table, stages_table
from ipnext.cli.tables.validators import validators_table
from ipnext.client import Client
from ipnext.client.lists import Listing
from ipnext.errors import InvalidInput, NotFound
from ipnext.model.api.generation_stats import GenerationAnswers
from ipnext.model.api.resources import (
    ChangeView,
    EventView,
    ModelView,
    SnapshotView,
    StatusExplanation,
    TransitionView,
)
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.messages import Change
from ipnext.model.lifecycle.stages import activity_name
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.transition import TransitionState
from ipnext.model.planning.wave_progress import arrived_words, measure_arrival
from ipnext.model.registry.adapter import client_name
from ipnext.model.registry.profile import PartThroughput, ProfileView
from ipnext.model.registry.registry import Generation

SHOWN_GENERATIONS = 20
"""Generations, the newest, of which `describe` tells."""


DESCRIBED = (
    *("MODEL", "snapshot MODEL PART N", "source MODEL NAME", "plan PLAN", "replan REPLAN", "freeze NAME"),
    *("owner NAME", "denial DIGEST", "report MODEL GENERATION"),
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
            help="A model, a snapshot, a source, a plan or replan by its id, a freeze, a denial, an owner, a report.",
            show_default=False,
        ),
    ],
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the graph of the parts that the model is cut into.")
    ] = None,
    output: Output = Form.TABLE,
) -> None:
    """Show all of a model (conditions, traffic, parts, replicas, changes), a plan, a replan, a freeze or an owner."""
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


def models_table(models: Iterable[ModelView]) -> Table:
    """One line for each model."""
    heads = ("model", "ready", "serving", "up-to-date", "reason", "generation", "target", "replicas", "regions", "age")
    return rows("", heads, (_model_line(view) for view in models))


def model_tables(
    view: ModelView,
    generations: Iterable[Generation],
    changes: Iterable[ChangeView],
    running: Iterable[TransitionView] = (),
    stages: Sequence[CheckResult] = (),
) -> Iterable[Table | str]:
    """All of one model.

    `running`: the transition that moves its traffic. `stages`: results of stages for the wanted generation.
    """
    status, spec = view.status, view.manifest.spec
    yield (
        f"{status.model}: {spec.task}, {spec.sync.policy}, owner {view.manifest.metadata.owner}, version {view.version}"
    )
    serving = "nothing" if status.serving_generation is None else f"generation {status.serving_generation}"
    yield f"serves {serving}; wanted: {status.target_generation or 'nothing yet'}; plan {status.plan_id or 'none'}"
    yield f"demand: {', '.join(f'{number(item.amount)} {spec.unit} in {item.region}' for item in spec.demand)}"
    if spec.adapters or len({part.engine for part in spec.parts}) > 1:
        yield parts_table(view.manifest)
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
    yield from map(waves_table, running)
    if stages:
        yield stage_results_table(stages, status.target_generation or 0)
    if view.freshness:
        yield freshness_table(view.freshness)
    if view.throughput:
        yield throughput_table(view.throughput)
    if view.answers:
        yield rows("\nanswers since the routers started", ANSWERS, map(_answers_line, view.answers))
    streamed = [found for found in view.answers if found.ttft_p50_ms is not None]
    if streamed:
        yield rows("\nstreams", STREAMS, map(_streams_line, streamed))
    if view.layout is not None:
        yield from layout_tables(view.layout, f"parts of generation {status.serving_generation}")
    wanted = (
        (d.key.part, d.key.region, d.key.hardware, d.wanted, d.ready, _list(d.generations)) for d in view.deployments
    )
    yield rows("\ndeployments", ("part", "region", "hardware", "wanted", "ready", "generations"), wanted)
    replicas = ((r.id, r.phase.value, _list(r.ready), r.restarts, r.note) for r in status.replicas)
    yield rows("\nreplicas", ("replica", "phase", "answers for", "restarts", "message"), replicas)
    changes = tuple(changes)
    yield from (shadow_table(change.shadow) for change in changes if change.shadow is not None)
    yield generations_table(generations)
    yield changes_table(changes)


def waves_table(view: TransitionView) -> Table:
    """One line for each wave: what of the traffic is where it goes then, and how far the wave is."""
    waves, done = view.transition.waves, view.waves_done
    lines = (
        (
            number,
            wave.gate,
            arrived_words(fractions),
            f"{wave.hold_seconds:g} s",
            "done" if number <= done else "under way" if number == done + 1 else "to come",
        )
        for number, (wave, fractions) in enumerate(
            zip(waves, measure_arrival(view.transition, view.model), strict=True), 1
        )
    )
    heads = ("wave", "gate", "traffic where it goes", "hold", "state")
    return rows(f"\nwaves of change {view.change_id} to generation {view.generation}", heads, lines)


def parts_table(manifest: ModelManifest) -> Table:
    """One line for each part: its engine, or the part that it is an adapter on and how clients ask for it."""
    lines = (
        (part.name, part.engine, "-")
        if part.adapter_of is None
        else (part.name, f"adapter on {part.adapter_of}", client_name(manifest.name, part.name))
        for part in manifest.spec.parts
    )
    return rows("\nparts", ("part", "engine", "asked as"), lines)


ANSWERS = ("generation", "answers", "errors", "non-finite", "p50 ms", "p99 ms", "drift")


def _answers_line(found: GenerationAnswers) -> Sequence[object]:
    drift = ", ".join(f"{output} {value:.2f}" for output, value in found.drift.items())
    against = f" against {found.compared_with}" if drift else ""
    counts = (found.generation, found.requests, found.errors, found.non_finite)
    return (*counts, f"{found.p50_ms:.3g}", f"{found.p99_ms:.3g}", drift + against)


STREAMS = ("generation", "first token p50 ms", "p99 ms", "between pieces p50 ms", "p99 ms")


def _streams_line(found: GenerationAnswers) -> Sequence[object]:
    figures = (found.ttft_p50_ms, found.ttft_p99_ms, found.itl_p50_ms, found.itl_p99_ms)
    return (found.generation, *(None if ms is None else f"{ms:.3g}" for ms in figures))


def snapshot_tables(snapshot: SnapshotView, profiles: Iterable[ProfileView]) -> Iterable[Table | str]:
    """Tabulate a snapshot, and the measured profiles of its replicas."""
    manifest = snapshot.manifest
    yield (
        f"{snapshot.model}/{snapshot.part}, snapshot {snapshot.number}: engine {manifest.engine}, "
        f"{age(snapshot.created_at)} old"
    )
    yield f"{len(manifest.files)} files, {manifest.size_bytes:,} bytes, SHA-256 {snapshot.digest}"
    yield snapshot.uri
    if snapshot.derived_from is not None:
        yield derivation_line(snapshot)
    yield times_of(snapshot)
    found = tuple(profiles)
    yield from profile_tables(found) if found else (f"no profile; `ipnext profile {snapshot.model}` measures one",)


def throughput_table(throughput: Iterable[PartThroughput]) -> Table:
    """Tabulate the throughput that plans assume of a replica, in the model's unit."""
    lines = (
        (
            found.part,
            found.hardware,
            number(found.units),
            "-" if found.rate is None else f"{number(found.rate)} {found.unit}",
            "declared" if found.snapshot is None else f"measured, snapshot {found.snapshot}",
            "" if found.met else "misses its latency target at any load",
        )
        for found in throughput
    )
    return rows("\na replica does", ("part", "hardware", "units", "throughput", "from", ""), lines)


def generations_table(generations: Iterable[Generation]) -> Table:
    """One line for each generation."""
    lines = (
        (g.number, g.state.value, _pairs(g), age(g.created_at), ": ".join(t for t in (g.reason, g.message) if t))
        for g in generations
    )
    return rows("\ngenerations", ("generation", "state", "snapshots", "age", "why"), lines)


def changes_list(changes: Iterable[ChangeView]) -> Table:
    """One line for each change of any model."""
    lines = ((c.id, c.model, c.kind.value, c.generation, c.state.value, age(c.created_at), _why(c)) for c in changes)
    return rows("", ("change", "model", "kind", "generation", "state", "age", "why"), lines)


def changes_table(changes: Iterable[ChangeView]) -> Table:
    """One line for each change."""
    lines = ((c.id, c.kind.value, c.generation, c.state.value, age(c.created_at), _why(c), c.run_url) for c in changes)
    return rows("\nchanges", ("change", "kind", "generation", "state", "age", "why", "run"), lines)


def events_table(events: Iterable[EventView]) -> Table:
    """One line for each event."""
    return rows("", ("age", "what", "message"), ((age(e.at), e.kind, e.message) for e in events))


_AT_REST = frozenset({Reason.SERVING, Reason.SUCCEEDED, Reason.PROGRESSING, Reason.PENDING})
"""Reasons of a ready model with which nothing is wrong."""


def explanation_tables(explanation: StatusExplanation) -> Iterable[Table | str]:
    """Tabulate the chain, then the advice."""
    ready = "not ready"
    if explanation.ready:
        ready = "ready" if explanation.reason in _AT_REST else "ready, but one thing is wrong"
    yield f"{explanation.model} is {ready}: {explanation.reason.value}: {explanation.message}\n"
    steps = ((step.level, step.subject, step.state, step.message) for step in explanation.chain)
    yield rows("", ("where", "what", "state", ""), steps)
    yield f"\n{explanation.advice}"


def _model_line(view: ModelView) -> tuple[object, ...]:
    status = view.status
    found = {condition.type: condition for condition in status.conditions}
    kinds = (ConditionType.READY, ConditionType.SERVING, ConditionType.UP_TO_DATE)
    states = (found[kind].status if kind in found else "Unknown" for kind in kinds)
    ready = found.get(ConditionType.READY)
    replicas = f"{sum(d.ready for d in view.deployments)}/{sum(d.wanted for d in view.deployments)}"
    regions = ",".join(sorted({d.key.region for d in view.deployments if d.wanted}))
    reason = ready.reason.value if ready else "NotPublished"
    targets = (status.serving_generation, status.target_generation)
    return (status.model, *states, reason, *targets, replicas, regions, age(view.created_at))


def _list(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _pairs(generation: Generation) -> str:
    pairs = " ".join(
        f"{part}={snapshot}" + _derived(generation, part) for part, snapshot in generation.snapshots.items()
    )
    return pairs if generation.layout is None else f"{pairs} (in {len(generation.layout.parts)} parts)"


def _derived(generation: Generation, part: str) -> str:
    """Return what serves in place of the published snapshot, with the hardware kinds that have another one."""
    found = generation.derived
    told = [str(found.parts[part])] if found is not None and part in found.parts else []
    told += [
        f"{numbers[part]} on {kind}" for kind, numbers in sorted(generation.by_hardware.items()) if part in numbers
    ]
    return f" (derived: {', '.join(told)})" if told else ""


def _why(change: Change) -> str:
    return ": ".join(text for text in (change.reason.value if change.reason else "", change.message) if text)


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
    Command("describe", "Show all of one model, snapshot, source, plan, replan, freeze or owner.", describe),
    Command("events", "Show what happened to a model.", events),
    Command("explain", "Explain why a model is, or is not, ready.", explain),
)
