"""Counts of the routers since a wave's traffic moved, for the new generation and the former one. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.comparison import Pair
from ipnext.model.gate.gate import GateSpec, GateWindow, RegionTraffic
from ipnext.model.gate.sketch import PredictionSketch
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import Transition

MAX_WINDOW_BYTES = 128 * 1024
"""Limit of a wave's counts in a run's history, which stores them once for each evaluation of a gate."""
_NUMBERS: Final = ("requests", "errors", "non_finite", "failed", "broken", "withdrawn", "left")
"""Counts that only grow."""
_COUNTED: Final = (*_NUMBERS, "under_way", "latency", "first_token", "token")


def former_generation(transition: Transition, model: str, generation: int) -> int | None:
    """Return the generation with most of the traffic before the transition.

    None if there was none, or it is the same.
    """
    shares: dict[int, float] = {}
    for share in transition.origin.traffic:
        if share.model == model:
            shares[share.generation] = shares.get(share.generation, 0.0) + share.fraction
    found = max(sorted(shares), key=shares.__getitem__, default=None)
    return None if found == generation else found


def refuse_uncompared(
    transition: Transition, model: str, generation: int, *, serving: int | None, gate: GateSpec
) -> WaveResult | None:
    """Refuse traffic if a generation serves but answers no users, as its regions are lost: nothing can be compared.

    `onTooFew` of the gate decides, because the former generation has too few answers: none. Returns None if traffic may
    move.
    """
    asked = any(item.qps > 0 for item in transition.demand)
    if serving in {None, generation} or not asked or any(share.model == model for share in transition.origin.traffic):
        return None
    if not gate.compares or gate.on_too_few == "pass":
        return None
    message = (
        f"generation {serving} serves and answers nobody now, so there is nothing to compare with; onTooFew is fail: "
        "publish again once it answers"
    )
    return WaveResult(ok=False, reason=Reason.GATE_FAILED, message=message)


def traffic_of(model: str, generation: int, regions: Iterable[RegionState]) -> tuple[RegionTraffic, ...]:
    """Return the generation's counts from each region's router: one entry for predictions, and one for each gateway.

    Only requests count whose generation a gateway chose: clients that name a generation neither fail its gate nor pass
    it.
    """
    found: list[RegionTraffic] = []
    for region in regions:
        counts = [t for t in region.traffic if (t.model, t.generation) == (model, generation)]
        found += _of_region(region.region, counts[0]) if counts else (RegionTraffic(region=region.region),)
    return tuple(found)


def _of_region(region: str, counted: GenerationTraffic) -> Iterator[RegionTraffic]:
    yield RegionTraffic(region=region, predictions=counted.predictions)
    for gateway, chosen in sorted(counted.chosen.items()):
        yield RegionTraffic(region=region, gateway=gateway, **{name: getattr(chosen, name) for name in _COUNTED})


def open_window(
    former: int | None, new: Sequence[RegionTraffic], old: Sequence[RegionTraffic], *, sketched: bool = True
) -> tuple[tuple[RegionTraffic, ...], GateWindow]:
    """Return the baselines of a wave: that of the new generation, and the window with that of the former one.

    They stay within MAX_WINDOW_BYTES: the largest regions' predictions are dropped until they do, or all predictions
    unless `sketched`.
    """
    sizes: dict[str, int] = {}
    for item in (*new, *old):
        sizes[item.region] = sizes.get(item.region, 0) + _sketch_bytes(item)
    dropped: list[str] = []
    over = sum(len(item.model_dump_json()) for item in (*new, *old)) - MAX_WINDOW_BYTES
    for region in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if sketched and over <= 0:
            break
        over -= sizes[region]
        dropped.append(region)
    without = tuple(sorted(dropped))
    window = GateWindow(former=former, baseline=_slim(old, without), unsketched=without)
    return _slim(new, without), window


def _sketch_bytes(item: RegionTraffic) -> int:
    return sum(len(sketch.model_dump_json()) for sketch in item.predictions.values())


def _slim(counts: Sequence[RegionTraffic], without: Sequence[str]) -> tuple[RegionTraffic, ...]:
    return tuple(item.model_copy(update={"predictions": {}}) if item.region in without else item for item in counts)


def count_since(
    baseline: Sequence[RegionTraffic],
    window: GateWindow | None,
    new: Sequence[RegionTraffic],
    old: Sequence[RegionTraffic],
) -> tuple[Pair, ...]:
    """Return the counts of each region and gateway since the baselines.

    If a router restarted, those of its region are since its start.
    """
    before_new, before_old = _by_place(baseline), _by_place(window.baseline if window else ())
    now_new, now_old = _by_place(new), _by_place(old)
    places = [*now_new, *(place for place in now_old if place not in now_new)]
    nothing = {place: RegionTraffic(region=place[0], gateway=place[1]) for place in places}
    regions = {place[0] for place in places}
    restarted = {
        place[0]
        for now, before in ((now_new, before_new), (now_old, before_old))
        for place, base in before.items()
        if place[0] in regions and _went_back(now.get(place) or RegionTraffic(region=place[0]), base)
    }
    pairs = []
    for place in places:
        first, second = (now.get(place) or nothing[place] for now in (now_new, now_old))
        has_restarted = place[0] in restarted
        if not has_restarted:
            first, second = _since(first, before_new.get(place)), _since(second, before_old.get(place))
        sketched = has_restarted or window is None or place[0] not in window.unsketched
        pairs.append(Pair(first, second, sketched, restarted=has_restarted))
    return tuple(pairs)


def _by_place(counts: Iterable[RegionTraffic]) -> dict[tuple[str, str | None], RegionTraffic]:
    return {(item.region, item.gateway): item for item in counts}


def _went_back(now: RegionTraffic, before: RegionTraffic | None) -> bool:
    """Check whether any count is smaller than before."""
    if before is None:
        return False
    if any(getattr(now, name) < getattr(before, name) for name in _NUMBERS):
        return True
    times = ((now.latency, before.latency), (now.first_token, before.first_token), (now.token, before.token))
    if any(new.get(bucket, 0) < count for new, old in times for bucket, count in old.items()):
        return True
    sketches = before.predictions.items()
    return any(name not in now.predictions or now.predictions[name].values < found.values for name, found in sketches)


def _since(now: RegionTraffic, before: RegionTraffic | None) -> RegionTraffic:
    if before is None:
        return now
    nothing = PredictionSketch()
    return RegionTraffic(
        region=now.region,
        gateway=now.gateway,
        under_way=now.under_way,
        **{name: getattr(now, name) - getattr(before, name) for name in _NUMBERS},
        latency=_less(now.latency, before.latency),
        first_token=_less(now.first_token, before.first_token),
        token=_less(now.token, before.token),
        predictions={
            name: _sketch_since(sketch, before.predictions.get(name, nothing))
            for name, sketch in now.predictions.items()
        },
    )


def _sketch_since(now: PredictionSketch, before: PredictionSketch) -> PredictionSketch:
    return PredictionSketch(
        answers=now.answers - before.answers,
        values=now.values - before.values,
        total=now.total - before.total,
        squares=max(0.0, now.squares - before.squares),
        bins=_less(now.bins, before.bins),
    )


def _less(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    left = {bucket: count - before.get(bucket, 0) for bucket, count in now.items()}
    return {bucket: count for bucket, count in left.items() if count > 0}
