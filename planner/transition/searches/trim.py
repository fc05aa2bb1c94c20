"""Tight ends: during a move a model gives up capacity above its traffic, and below it by an allowed dip.

Both ends of a line are trimmed by the same fraction, so that on the whole line each generation misses at most that
fraction of its traffic. Processes that hold several generations are left alone.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

from planner.transition.instance import Ground
from planner.transition.model_state import Copy, Hold, Row, Standing, loads
from planner.transition.paths import EPSILON
from planner.transition.searches.shortage import short_rows, with_surge
from planner.transition.trajectory import Course

Place = tuple[str, str, str]
"""Model, part, region."""
Dips = Mapping[Place, float]
NO_DIPS: Dips = {}


def trim_standing(ground: Ground, model: str, standing: Standing, rows: Collection[Row], dips: Dips) -> Standing:
    """Return the state without the replicas in `rows` that the traffic, less the dip, does not need."""
    if not ground.divisible(model, standing):
        return standing
    counts, spare = dict(standing.counts), _spare(ground, model, standing, dips)
    for copy in sorted(counts, key=lambda copy: (-_units(ground, model, copy), copy)):
        part, region, hardware, generation = copy
        if (region, hardware) not in rows:
            continue
        qps = ground.options[model][part, hardware].qps
        room = spare[part, region, generation]
        gone = max(0, min(counts[copy], int(room / qps + EPSILON)))
        counts[copy] -= gone
        spare[part, region, generation] = room - gone * qps
    return Standing({copy: count for copy, count in counts.items() if count}, standing.shares)


def lean(course: Course, to: Mapping[str, Standing], dips: Dips = NO_DIPS) -> Course:
    """Advance to `to` through tight ends, in the rows that are short; as far as possible."""
    rows: set[Row] = set()
    ground, pending = course.ground, course.pending(to)

    def tight(ends: Mapping[str, Standing]) -> dict[str, Standing]:
        return {m: trim_standing(ground, m, ends.get(m, Standing()), rows, dips) for m in pending}

    new = short_rows(course, to)
    while new:
        rows |= new
        goal = tight(to)
        reached = course.go(tight(course.standing)).go(goal)
        if not [m for m in pending if reached.at(m) != goal[m]]:
            return reached.go(to)
        new = short_rows(reached, {**to, **goal}) - rows
    return course


def lean_with_surge(course: Course, to: Mapping[str, Standing]) -> Course:
    """Advance to `to` through tight ends in all rows, with additional units, as few as were found."""
    ground, rows = course.ground, course.ground.rows
    pending = course.pending(to)
    now, goal = (
        {m: trim_standing(ground, m, ends.get(m, Standing()), rows, NO_DIPS) for m in pending}
        for ends in (course.standing, to)
    )
    return with_surge(with_surge(course.go(now), {**course.standing, **goal}), to)


def levels(course: Course, to: Mapping[str, Standing], places: Collection[Place]) -> list[float]:
    """Return the fractions at which one more replica may go, at either end, ascending."""
    found: set[float] = set()
    for model in sorted({place[0] for place in places}):
        for end in (course.at(model), to.get(model, Standing())):
            spare = _spare(course.ground, model, end, {})
            load = _loads(course.ground, model, end)
            for (part, region, hardware, generation), count in end.counts.items():
                hold = part, region, generation
                if (model, part, region) in places and load.get(hold, 0.0) > 0:
                    qps = course.ground.options[model][part, hardware].qps
                    found |= {(k * qps - spare[hold]) / load[hold] for k in range(1, count + 1)}
    return sorted(level for level in found if 0 < level <= 1 + EPSILON)


def dips_of(course: Course, start: Mapping[str, Standing], places: Collection[Place]) -> dict[Place, float]:
    """Return the most that each place misses of a generation's traffic on the course, beyond the shortage at the start."""
    ground, worst = course.ground, dict[Place, float]()
    models = {place[0] for place in places}
    lacking = {m: _spare(ground, m, start.get(m, Standing()), {}) for m in models}
    for leg in course.legs:
        for model, ends in zip(leg.lines.models, leg.lines.ends, strict=True):
            for end in ends if model in models else ():
                spare, load = _spare(ground, model, end, {}), _loads(ground, model, end)
                for hold, qps in load.items():
                    missing = -spare[hold] - max(0.0, -lacking[model].get(hold, 0.0))
                    place = model, *hold[:2]
                    worst[place] = max(worst.get(place, 0.0), missing / qps if qps > 0 else 0.0)
    return {place: fraction for place, fraction in sorted(worst.items()) if fraction > EPSILON}


def _units(ground: Ground, model: str, copy: Copy) -> float:
    return ground.options[model][copy[0], copy[2]].units


def _loads(ground: Ground, model: str, standing: Standing) -> dict[Hold, float]:
    return loads(standing.shares, ground.demand[model], ground.parts[model], ground.policy_of(model).calls)


def _spare(ground: Ground, model: str, standing: Standing, dips: Dips) -> dict[Hold, float]:
    """Return QPS of each hold above its traffic less its dip."""
    spare: dict[Hold, float] = defaultdict(float)
    for (part, region, hardware, generation), count in standing.counts.items():
        spare[part, region, generation] += count * ground.options[model][part, hardware].qps
    for (part, region, generation), qps in _loads(ground, model, standing).items():
        spare[part, region, generation] -= qps * (1.0 - dips.get((model, part, region), 0.0))
    return spare
