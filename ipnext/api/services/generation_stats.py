"""Answers of a model's generations: the routers' counters as figures. Pure."""

from collections.abc import Iterable, Mapping

from ipnext.api.services.region_states import States
from ipnext.model.api.generation_stats import GenerationAnswers
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.comparison import Pair, predictions
from ipnext.model.gate.distributions import quantile, stability_index
from ipnext.model.gate.gate import RegionTraffic
from ipnext.model.gate.sketch import LATENCY_SECONDS

Counted = Mapping[int, Mapping[str, GenerationTraffic]]
"""Generation -> region -> counters of its router."""


def answers_of(
    model: str, serving: int | None, states: Mapping[str, RegionState | None]
) -> tuple[GenerationAnswers, ...]:
    """Return one entry for each generation that the routers serve and that answered, ascending."""
    counted: dict[int, dict[str, GenerationTraffic]] = {}
    for region, found in States.like(states).traffic_of(model).items():
        for traffic in found:
            if traffic.latency:
                counted.setdefault(traffic.generation, {})[region] = traffic
    return tuple(_answers(counted, number, serving) for number in sorted(counted))


def _answers(counted: Counted, number: int, serving: int | None) -> GenerationAnswers:
    mine = counted[number]
    whole = _sum_histograms(traffic.latency for traffic in mine.values())
    first = _sum_histograms(traffic.first_token for traffic in mine.values())
    between = _sum_histograms(traffic.token for traffic in mine.values())
    other = serving if serving != number and serving in counted else None
    return GenerationAnswers(
        generation=number,
        requests=sum(traffic.requests for traffic in mine.values()),
        errors=sum(traffic.errors for traffic in mine.values()),
        non_finite=sum(traffic.non_finite for traffic in mine.values()),
        p50_ms=_ms(whole, 0.5),
        p99_ms=_ms(whole, 0.99),
        ttft_p50_ms=_ms(first, 0.5) if first else None,
        ttft_p99_ms=_ms(first, 0.99) if first else None,
        itl_p50_ms=_ms(between, 0.5) if between else None,
        itl_p99_ms=_ms(between, 0.99) if between else None,
        compared_with=other,
        drift={} if other is None else _drift(mine, counted[other]),
    )


def _ms(buckets: Mapping[int, float], fraction: float) -> float:
    return round(quantile(buckets, LATENCY_SECONDS, fraction) * 1000, 3)


def _drift(new: Mapping[str, GenerationTraffic], old: Mapping[str, GenerationTraffic]) -> dict[str, float]:
    pairs = [
        Pair(_sketches(region, new[region]), _sketches(region, old[region]))
        for region in sorted(new.keys() & old.keys())
    ]
    found = predictions(pairs).items()
    return {name: round(stability_index(both.new, both.old, noise=both.noise).size, 4) for name, both in found}


def _sketches(region: str, counted: GenerationTraffic) -> RegionTraffic:
    return RegionTraffic(region=region, predictions=counted.predictions)


def _sum_histograms(histograms: Iterable[Mapping[int, int]]) -> dict[int, float]:
    total: dict[int, float] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0.0) + count
    return total
