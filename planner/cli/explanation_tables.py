"""An explanation and a conflict as tables for users."""

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from ipnext.model.planning.explanation import (
    Binding,
    Explanation,
    LimitConflict,
    LimitUse,
    ModelExplanation,
    PlacementExplanation,
    RunnerUp,
    SupplyUse,
)
from ipnext.model.planning.plan import ReplicaCount
from planner.cli.output import facts, render_titled, rows
from planner.cli.plan_commands import few

SMALL = 1e-4
"""If a part of a model's objective is smaller, its difference gets no line."""

MOST_BINDINGS = 4
"""Rules listed for one placement; the document has them all."""


def explanation_tables(found: Explanation) -> Iterator[Table | str]:
    """Yield the fleet first, then its models."""
    figures = found.figures
    lines = [
        ("objective", f"{figures.objective:,.7g} $/h"),
        ("hardware", f"{figures.cost_per_hour:,.7g} $/h for {figures.replicas:,} replicas"),
        ("unmet", f"{figures.unmet_qps:,.6g} of {figures.demand_qps:,.6g} QPS"),
        ("covers", found.covers),
    ]
    lines += [("prices", found.prices_from)] if found.prices_from else []
    lines += [("broken", few(found.broken))] if found.broken else []
    yield facts("plan", lines)
    yield ""
    yield from _limits(found)
    if found.unmet_by_rule:
        unmet = [[u.rule, u.demands, f"{u.qps:,.6g}", f"{u.unmet_per_hour:,.6g}"] for u in found.unmet_by_rule]
        yield from render_titled("unmet by rule", ["rule", "demands", "QPS", "$/h"], unmet)
        yield ""
    if not found.models:
        dear = [[m.model, f"{m.cost_per_hour:,.6g}", m.replicas, f"{m.unmet_qps:,.6g}"] for m in found.dearest]
        yield rows("dearest models", ["model", "$/h", "replicas", "unmet QPS"], dear)
    for model in found.models:
        yield from _model(model)


def _limits(found: Explanation) -> Iterator[Table | str]:
    """Yield supply, the dearest and the fullest first, then budgets and moves."""
    heads, worth = _worth(found)
    supply = sorted(found.supply, key=lambda use: (-_dear(use), use.free / use.units if use.units else 1.0))
    lines = [
        [f"{use.region}/{use.hardware}", f"{use.used:,.6g}", f"{use.free:,.6g}", f"{use.unit_cost:.6g}", *worth(use)]
        for use in supply
    ]
    yield from render_titled("supply", ["where", "used", "free", "$/h a unit", *heads], lines)
    yield ""
    if found.limits:
        limits = sorted(found.limits, key=lambda use: (-_dear(use), use.free / use.limit if use.limit else 0.0))
        lines = [[use.rule, f"{use.used:,.6g}", f"{use.free:,.6g}", *worth(use)] for use in limits]
        yield from render_titled("budgets and moves", ["limit", "used", "free", *heads], lines)
        yield ""


Use = SupplyUse | LimitUse


def _dear(use: Use) -> float:
    return max(use.price or 0.0, use.saves or 0.0)


def _worth(found: Explanation) -> tuple[list[str], Callable[[Use], list[str]]]:
    """Return heads and cells for the value of one more unit, if it was requested."""
    if not found.prices_from:
        return [], lambda _: []
    uses: list[Use] = [*found.supply, *found.limits]
    if all(use.saves is None for use in uses):
        return ["price of one more, $/h"], lambda use: [_figure(use.price)]
    return ["price of one more, $/h", "one more saves, $/h"], lambda use: [_figure(use.price), _figure(use.saves)]


def _figure(figure: float | None) -> str:
    return "?" if figure is None else f"{figure:,.6g}" if figure else "-"


def _model(model: ModelExplanation) -> Iterator[Table | str]:
    figures = model.figures
    title = f"{model.model}: {figures.cost_per_hour:,.6g} $/h, {figures.replicas} replicas"
    title += f", {figures.unmet_qps:,.6g} of {figures.demand_qps:,.6g} QPS unmet" if figures.unmet_qps else ""
    yield title
    if model.best.extra_per_hour < -SMALL * max(1.0, figures.objective):
        yield f"  not its best plan beside the others: {_runner_up(model.best, model.placements)}"
    if model.placements:
        lines = [line for place in model.placements for line in _placement(place, model.placements)]
        yield rows("", ["placement", "", ""], lines)
    yield ""
    if model.unmet:
        unmet = [[u.region, f"{u.qps:,.6g}", f"{u.unmet_per_hour:,.6g}", few(u.rules, 8)] for u in model.unmet]
        yield from render_titled(f"unmet demand of {model.model}", ["users of", "QPS", "$/h", "rules that bind"], unmet)
        yield ""
    if model.servable:
        yield f"all of {model.model} could be served beside the others, at a cost"
        yield ""
    if model.needs:
        needs = [[need.rule, f"{need.limit:,.6g}", f"{need.needed:,.6g}"] for need in model.needs]
        yield from render_titled(
            f"the least growth of limits that serves all of {model.model}", ["limit", "now", "needed"], needs
        )
        yield ""
    if model.conflict:
        yield from conflict_tables(model.conflict)
        yield ""


def _placement(place: PlacementExplanation, now: Sequence[PlacementExplanation]) -> Iterator[Sequence[str]]:
    name = f"{place.count} x {place.part} in {place.region}/{place.hardware}\n{place.cost_per_hour:,.6g} $/h"
    yield name, "one less breaks", _bindings(place.count_rules) or "no rule"
    yield " ", "kept here by", _bindings(place.place_rules)
    if place.runner_up:
        yield " ", "without it", _runner_up(place.runner_up, now)


def _bindings(bindings: Sequence[Binding]) -> str:
    """Join the rules, one per line."""
    told = [f"{binding.rule}: {binding.message}" for binding in bindings[:MOST_BINDINGS]]
    more = [f"and {len(bindings) - MOST_BINDINGS} more"] if len(bindings) > MOST_BINDINGS else []
    return "\n".join([*told, *more])


def _runner_up(second: RunnerUp, now: Sequence[PlacementExplanation]) -> str:
    unmet = f", {second.unmet_qps:,.6g} QPS unmet" if second.unmet_qps else ""
    proved = "" if second.extra_at_least >= second.extra_per_hour else f" (at least {second.extra_at_least:+,.6g})"
    return f"{second.extra_per_hour:+,.6g} $/h{proved}{unmet}: {_describe_moves(second.replicas, now)}"


def _describe_moves(then: Sequence[ReplicaCount], now: Sequence[PlacementExplanation]) -> str:
    """Describe the placements that grow and those that shrink."""
    counts: dict[tuple[str, str, str], int] = {(p.part, p.region, p.hardware): -p.count for p in now}
    for item in then:
        key = (item.part, item.region, item.hardware)
        counts[key] = counts.get(key, 0) + item.count
    told = [f"{count:+d} {part} in {region}/{kind}" for (part, region, kind), count in sorted(counts.items()) if count]
    return few(told, 8)


def conflict_tables(found: LimitConflict) -> Iterator[Table | str]:
    """Yield the members of a conflicting set."""
    yield (
        f"these limits together leave no room to serve all of {few(found.models)}; "
        "without any one of them there is room"
    )
    unsure = "; the solver could not tell for some, which may be needless: ask for fewer models"
    yield f"({found.beside}{'' if found.minimal else unsure})"
    lines = [
        [member.name, "" if member.limit is None else f"{member.limit:,.6g} {member.unit}", _alone(member.alone)]
        for member in found.members
    ]
    yield rows("", ["limit", "is", "enough to lift it alone"], lines)


def _alone(alone: bool | None) -> str:
    return "not decided" if alone is None else "yes" if alone else "no"
