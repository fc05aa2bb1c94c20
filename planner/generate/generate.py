"""Draws realistic planner problems from a seed: from loose to tight, from one model to a hundred thousand.

Called by `ipnext plan generate`, tests and benchmarks. The tightness of an instance follows from one placement of it,
the reference of `planner.generate.reference_placement`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import Problem
from planner.generate.fleet import QUANTUM, TOLERANCES_MS, DrawnFleet, Flags, Floats, Ints, draw_fleet, significant
from planner.generate.reference_placement import ReferencePlacement, across, reference_of, units_of


def generate(  # noqa: PLR0913 - one keyword for each figure of an instance
    *,
    models: int,
    regions: int = 20,
    hardware: int = 6,
    supply_use: float = 0.8,
    seed: int = 0,
    current: bool = False,
    demand_noise: float = 0.0,
) -> Problem:
    """Return a valid problem; the same arguments give the same problem.

    `supply_use` is, for each hardware kind (all regions together), the units that the reference uses divided by the
    units supplied. The reference places each model in the cheapest way among some ten sets of regions, at prices that
    lead each kind to its regions in drawn proportions; it keeps every rule, budgets too. Up to 1 every region supplies
    at least the units that the reference uses there, so the reference fits and nothing need be left unmet (0.7 is
    loose, 0.98 is tight); the slack is distributed unevenly over the regions. Above 1 every region is short of it by
    the same factor.

    `demand_noise` multiplies each demand by a factor from 1 - noise to 1 + noise, drawn after the supply. `current`
    adds the reference for the demand before that as the current placement (at supply use above 1: the models of it that
    fit, by priority) and a cost of 0.05 $/h a move. Raises InvalidInput for an argument out of its range.
    """
    _check(models=(models, 1, 1_000_000), regions=(regions, 1, 200), hardware=(hardware, 1, 50), seed=(seed, 0, 2**63))
    _check(supply_use=(supply_use, 0.01, 2.0), demand_noise=(demand_noise, 0.0, 0.99))
    rng = np.random.Generator(np.random.PCG64(seed))
    fleet = draw_fleet(rng, models, regions, hardware)
    reference = reference_of(fleet)
    supply = _supply(rng, fleet, reference, supply_use)
    noise = 1.0 + demand_noise * rng.uniform(-1.0, 1.0, fleet.qps.shape)
    noisy = replace(fleet, qps=significant(fleet.qps * noise, 3)) if demand_noise else fleet
    owners, model_budget = _budgets(rng, fleet, reference)
    return Problem.model_validate(
        {
            **_places(fleet, supply),
            "owners": owners,
            "models": list(_models(noisy, model_budget)),
            "current": _current(fleet, reference, supply) if current else {},
            "objective": {"move_cost": 0.05 if current else 0.0},
        }
    )


def _check(**arguments: tuple[float, float, float]) -> None:
    for name, (value, least, most) in arguments.items():
        whole = isinstance(least, int)
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
            allowed = f"{'a whole number' if whole else 'a number'} from {least} to {most}"
            msg = f"{name}: {value!r} is not allowed; allowed: {allowed}"
            raise InvalidInput(msg, field=name, value=value, allowed=[allowed])


def _supply(rng: np.random.Generator, fleet: DrawnFleet, reference: ReferencePlacement, supply_use: float) -> Floats:
    """Return (R, H) units: the reference's usage plus slack, half of it uneven, or its usage reduced by one factor."""
    taken = units_of(fleet, reference.counts)
    total = taken.sum(axis=0)
    uneven = (taken / np.maximum(total, 1.0) + fleet.share) * rng.gamma(4.0, 1.0, taken.shape)
    slack = (1.0 / supply_use - 1.0) * (taken + total * uneven / uneven.sum(axis=0)) / 2
    return _quanta(taken + slack if supply_use <= 1.0 else taken / supply_use)


def _quanta(units: Floats) -> Floats:
    return np.floor(units / QUANTUM + 1e-6) * QUANTUM


def _spent(fleet: DrawnFleet, counts: Ints) -> Floats:
    """Return (M,) $/h of the replicas."""
    price = np.where(np.isfinite(fleet.price), fleet.price, 0.0).T[fleet.option_hardware]
    option = (counts * price).sum(axis=1) * fleet.option_units
    of_part = np.add.reduceat(option, fleet.option_start)
    return np.add.reduceat(of_part, fleet.part_start)


def _budgets(
    rng: np.random.Generator, fleet: DrawnFleet, reference: ReferencePlacement
) -> tuple[list[dict[str, Any]], Floats]:
    """Return owners and (M,) model budgets, infinite without one.

    One owner in five has a budget of 15 to 50 % above the reference.
    """
    spent = _spent(fleet, reference.counts)
    number = int(fleet.owner.max()) + 1
    limits = np.bincount(fleet.owner, spent, minlength=number) * rng.uniform(1.15, 1.5, number)
    limited = rng.random(number) < 0.2
    owners = [
        {"owner": f"owner-{k + 1}", "budget_per_hour": _up(limits[k]) if limited[k] else None} for k in range(number)
    ]
    own = np.where(rng.random(fleet.models) < 0.05, spent * rng.uniform(1.15, 1.5, fleet.models), np.inf)
    return owners, own


def _up(figure: float) -> float:
    """Round up to two decimals."""
    return float(np.ceil(figure * 100.0) / 100.0)


def _places(fleet: DrawnFleet, supply: Floats) -> dict[str, Any]:
    cells = [(r, h) for r, h in np.ndindex(*supply.shape) if np.isfinite(fleet.price[r, h])]
    kinds = _kinds(fleet)
    return {
        "regions": fleet.names,
        "rtt_ms": fleet.rtt.tolist(),
        "hardware": kinds,
        "supply": [
            {
                "region": fleet.names[r],
                "hardware": kinds[h],
                "units": float(supply[r, h]),
                "unit_cost": float(fleet.price[r, h]),
            }
            for r, h in cells
        ],
    }


def _kinds(fleet: DrawnFleet) -> tuple[str, ...]:
    """Return labels, cheapest kind first."""
    return tuple(f"kind-{h + 1}" for h in range(fleet.price.shape[1]))


def _models(fleet: DrawnFleet, budget: Floats) -> Iterator[dict[str, Any]]:
    kinds = _kinds(fleet)
    fields = (fleet.option_hardware.tolist(), fleet.option_units.tolist(), fleet.option_qps.tolist())
    options = [{"hardware": kinds[h], "units": u, "qps": q} for h, u, q in zip(*fields, strict=True)]
    part_end, option_end = [*fleet.part_start[1:], len(fleet.part_model)], [*fleet.option_start[1:], len(options)]
    for m, qps in enumerate(fleet.qps.tolist()):
        yield {
            "model": f"model-{m + 1}",
            "owner": f"owner-{fleet.owner[m] + 1}",
            "priority": float(fleet.priority[m]),
            "latency_tolerance_ms": float(TOLERANCES_MS[fleet.tolerance[m]]),
            "survive": "region" if fleet.survives[m] else "none",
            "budget_per_hour": _up(budget[m]) if np.isfinite(budget[m]) else None,
            "demand": [{"region": fleet.names[s], "qps": q} for s, q in enumerate(qps) if q > 0],
            "parts": [
                {
                    "part": f"part-{p - fleet.part_start[m] + 1}",
                    "min_replicas": int(fleet.part_min[p]),
                    "options": options[fleet.option_start[p] : option_end[p]],
                }
                for p in range(fleet.part_start[m], part_end[m])
            ],
        }


def _current(fleet: DrawnFleet, reference: ReferencePlacement, supply: Floats) -> dict[str, Any]:
    """Return the reference of the models that fit the supply, by priority, as replicas and traffic."""
    kept = _fitting(fleet, reference, supply)
    kinds, names = _kinds(fleet), fleet.names
    part = fleet.option_part
    number = np.arange(len(fleet.part_model)) - fleet.part_start[fleet.part_model] + 1
    replicas = [
        {
            "model": f"model-{fleet.part_model[part[o]] + 1}",
            "part": f"part-{number[part[o]]}",
            "region": names[r],
            "hardware": kinds[fleet.option_hardware[o]],
            "count": int(reference.counts[o, r]),
        }
        for o, r in np.argwhere((reference.counts > 0) & kept[fleet.part_model[part], None])
    ]
    reached = np.maximum(across(fleet, reference.serves, back=True), 1.0)
    traffic = [
        {"model": f"model-{m + 1}", "from": names[s], "to": names[r], "fraction": round(1.0 / reached[m, s], 9)}
        for m, s in np.argwhere((fleet.qps > 0) & kept[:, None])
        for r in np.flatnonzero(reference.serves[m] & (fleet.reach[fleet.tolerance[m], s] > 0))
    ]
    return {"replicas": replicas, "traffic": traffic}


def _fitting(fleet: DrawnFleet, reference: ReferencePlacement, supply: Floats) -> Flags:
    """Return (M,) the models of the reference that fit the supply, taken by priority."""
    if np.all(units_of(fleet, reference.counts) <= supply + 1e-9):
        return np.ones(fleet.models, dtype=np.bool_)
    left, kept = supply.copy(), np.zeros(fleet.models, dtype=np.bool_)
    start = np.append(fleet.option_start[fleet.part_start], len(fleet.option_part))
    for m in np.argsort(-fleet.priority, kind="stable"):
        taken = np.zeros_like(left)
        rows = slice(start[m], start[m + 1])
        for kind, units, counts in zip(
            fleet.option_hardware[rows], fleet.option_units[rows], reference.counts[rows], strict=True
        ):
            taken[:, kind] += units * counts
        kept[m] = bool(np.all(taken <= left + 1e-9))
        left -= taken if kept[m] else 0.0
    return kept
