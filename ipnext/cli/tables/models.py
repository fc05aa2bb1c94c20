"""How models are shown: their state, waves, parts and figures."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from ipnext.cli.output import age, number, rows
from ipnext.cli.tables.changes import changes_table
from ipnext.cli.tables.freshness import freshness_table
from ipnext.cli.tables.generations import generations_table
from ipnext.cli.tables.layouts import layout_tables
from ipnext.cli.tables.stages import progress_table, shadow_table, stage_results_table
from ipnext.model.api.generation_stats import GenerationAnswers
from ipnext.model.api.resources import ChangeView, ModelView, TransitionView
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import ConditionType
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.wave_progress import arrived_words, measure_arrival
from ipnext.model.registry.adapter import client_name
from ipnext.model.registry.profile import PartThroughput
from ipnext.model.registry.registry import Generation


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
    for change in changes:
        if any(stage.state == "running" for stage in change.stages):
            yield progress_table(change.stages, f"{change.kind.value} {change.id}")
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
