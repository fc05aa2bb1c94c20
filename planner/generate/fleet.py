"""A fleet drawn from a seed, before its supply: regions, hardware prices, models with their demand and parts.

Called by `planner.generate.generate`. All figures are drawn; none is a measurement.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

TOLERANCES_MS = np.array([60.0, 100.0, 150.0, 250.0, 400.0])
PRIORITIES = np.array([0.5, 1.0, 2.0, 4.0])
MOST_REPLICAS = 400.0
"""Largest number of replicas that the whole demand of a model needs, for one part."""
CONTINENTS = ("na", "eu", "ap")
CENTRES = np.array([[40.0, -95.0], [48.0, 10.0], [25.0, 115.0]])
"""Latitude and longitude, degrees."""
QUANTUM = 0.25
"""Units of a replica, and of a supply, are multiples of it."""


@dataclass(frozen=True)
class DrawnFleet:
    """An instance before its supply. M models, P parts, O options, R regions, H hardware kinds, K owners."""

    names: tuple[str, ...]
    rtt: Floats
    """(R, R) ms."""
    price: Floats
    """(R, H) $/h a unit; infinite if the region does not have the kind."""
    share: Floats
    """(R, H) intended distribution of each kind over the regions; columns sum to 1."""
    qps: Floats
    """(M, R)"""
    tolerance: Ints
    """(M,) index into TOLERANCES_MS."""
    survives: Flags
    """(M,)"""
    priority: Floats
    """(M,)"""
    owner: Ints
    """(M,) from 0."""
    part_model: Ints
    """(P,)"""
    part_min: Ints
    """(P,) `min_replicas`."""
    option_part: Ints
    """(O,)"""
    option_hardware: Ints
    """(O,)"""
    option_units: Floats
    """(O,) units a replica."""
    option_qps: Floats
    """(O,) QPS a replica."""

    @property
    def models(self) -> int:
        """M."""
        return len(self.qps)

    @cached_property
    def reach(self) -> Floats:
        """(5, R, R) 1 if users of the first region may be served in the second, for each tolerance."""
        return (self.rtt[None] <= TOLERANCES_MS[:, None, None]).astype(np.float64)

    @cached_property
    def part_start(self) -> Ints:
        """(M,) first part of each model."""
        return np.searchsorted(self.part_model, np.arange(self.models))

    @cached_property
    def option_start(self) -> Ints:
        """(P,) first option of each part."""
        return np.searchsorted(self.option_part, np.arange(len(self.part_model)))

    def some(self, kept: Ints) -> "DrawnFleet":
        """Return the fleet of only these models (ascending)."""
        parts = np.isin(self.part_model, kept)
        options = parts[self.option_part]
        return replace(
            self,
            **{name: getattr(self, name)[kept] for name in ("qps", "tolerance", "survives", "priority", "owner")},
            part_model=np.searchsorted(kept, self.part_model[parts]),
            part_min=self.part_min[parts],
            option_part=(np.cumsum(parts) - 1)[self.option_part[options]],
            **{name: getattr(self, name)[options] for name in ("option_hardware", "option_units", "option_qps")},
        )


def draw_fleet(rng: np.random.Generator, models: int, regions: int, hardware: int) -> DrawnFleet:
    """Draw a fleet of this size.

    Every user reaches, within the smallest tolerance, the first region of their continent, which has every kind.
    """
    continent = np.sort(np.arange(regions) % len(CONTINENTS))
    first = np.searchsorted(continent, np.arange(continent[-1] + 1))
    names = tuple(f"{CONTINENTS[c]}-{i - first[c] + 1}" for i, c in enumerate(continent))
    users = rng.lognormal(0.0, 0.7, regions)
    base = np.sort(np.exp(rng.uniform(np.log(0.5), np.log(8.0), hardware)))
    price = significant(
        base * np.clip(rng.uniform(1.0, 1.2, (regions, 1)) * rng.uniform(0.97, 1.03, hardware), 1, 1.2), 3
    )
    absent = rng.random((regions, hardware)) < (0.1 if regions > len(CONTINENTS) else 0.0)
    absent[first], absent[:, 0] = False, False  # a continent's first region has every kind, every region the first
    share = np.where(absent, 0.0, np.sqrt(users)[:, None] * rng.lognormal(0.0, 0.25, (regions, hardware)))
    demand = _demand(rng, models, continent, users)
    part_model = np.repeat(np.arange(models), rng.choice([1, 2, 3], models, p=[0.35, 0.45, 0.2]))
    worth, options = _options(rng, base, demand.sum(axis=1)[part_model])
    return DrawnFleet(
        names=names,
        rtt=_rtt(rng, continent),
        price=np.where(absent, np.inf, price),
        share=share / share.sum(axis=0),
        qps=demand,
        tolerance=rng.choice(len(TOLERANCES_MS), models, p=[0.15, 0.25, 0.25, 0.2, 0.15]),
        survives=(rng.random(models) < 0.5) & (regions > 1),
        priority=rng.choice(PRIORITIES, models, p=[0.2, 0.6, 0.15, 0.05]),
        owner=np.minimum(rng.zipf(1.6, models), max(1, models // 25)) - 1,
        part_model=part_model,
        part_min=np.where((rng.random(len(worth)) < 0.15) & (worth >= 8.0), 2, 1),
        **options,
    )


def _rtt(rng: np.random.Generator, continent: Ints) -> Floats:
    """Return (R, R) ms by distance: 1 at home, 10 to 60 inside a continent, 80 to 250 across."""
    latitude, longitude = np.radians(CENTRES[continent] + rng.normal(0.0, [6.0, 12.0], (len(continent), 2))).T
    cosine = np.sin(latitude)[:, None] * np.sin(latitude) + np.cos(latitude)[:, None] * np.cos(latitude) * np.cos(
        longitude[:, None] - longitude
    )
    distance = np.round(np.arccos(np.clip(cosine, -1.0, 1.0)), 9)
    same = continent[:, None] == continent
    rtt = np.where(same, _stretch(distance, same, 10.0, 60.0), _stretch(distance, ~same, 80.0, 250.0))
    np.fill_diagonal(rtt, 1.0)
    return np.round((rtt + rtt.T) / 2)


def _stretch(distance: Floats, pairs: Flags, low: float, high: float) -> Floats:
    """Stretch distances so that those of `pairs` run from low to high."""
    inside = distance[pairs] if pairs.any() else distance.ravel()
    spread = max(float(inside.max() - inside.min()), 1e-9)
    stretched: Floats = low + (high - low) * (distance - inside.min()) / spread
    return stretched


def _demand(rng: np.random.Generator, models: int, continent: Ints, users: Floats) -> Floats:
    """Return (M, R) QPS: a heavy-tailed total, from one region, some of one continent, or some to all of all."""
    regions = len(continent)
    home = rng.choice(regions, models, p=users / users.sum())
    width = rng.choice(3, models, p=[0.15, 0.4, 0.45])
    asked = rng.random((models, regions)) < rng.uniform(0.2, 1.0, (models, 1))
    asked &= (width[:, None] == 2) | ((width[:, None] == 1) & (continent == continent[home][:, None]))
    asked[np.arange(models), home] = True
    weight = asked * users * rng.lognormal(0.0, 0.6, (models, regions))
    total = np.exp(np.log(400.0) + 1.5 * np.clip(rng.normal(size=models), -2.0, 3.3))
    return significant(total[:, None] * weight / weight.sum(axis=1, keepdims=True), 3)


def _options(rng: np.random.Generator, base: Floats, total: Floats) -> tuple[Floats, dict[str, Any]]:
    """Return the replicas for each part's demand, and the fields of its options.

    1 to 3 kinds of about equal value for money.
    """
    parts, kinds = len(total), len(base)
    worth = np.clip(total / rng.lognormal(np.log(60.0), 0.9, parts), 0.1, MOST_REPLICAS)
    taste = rng.gumbel(size=(parts, kinds)) + rng.uniform(0.0, 1.0, kinds)
    rank = np.argsort(np.argsort(-taste, axis=1), axis=1)
    part, kind = np.nonzero(rank < rng.choice([1, 2, 3], parts, p=[0.3, 0.4, 0.3])[:, None])
    units = rng.choice([1, 2, 4], len(part), p=[0.5, 0.3, 0.2]) * np.where(base[kind] > 2.5, QUANTUM, 1.0)
    speed = units * base[kind] ** 0.95 * rng.lognormal(0.0, 0.25, len(part))
    mean = np.exp(np.bincount(part, np.log(speed)) / np.bincount(part))
    qps = significant((total / worth)[part] * speed / mean[part], 3)
    return worth, {"option_part": part, "option_hardware": kind, "option_units": units, "option_qps": qps}


def qps_cost_of(fleet: DrawnFleet, price: Floats) -> Floats:
    """Return (M, R) $/h of one QPS of a model, with divisible replicas; infinite if a part has no hardware."""
    option = price.T[fleet.option_hardware] * (fleet.option_units / fleet.option_qps)[:, None]
    total: Floats = np.add.reduceat(np.minimum.reduceat(option, fleet.option_start), fleet.part_start)
    return total


def significant(figures: Floats, digits: int) -> Floats:
    """Round to this many significant digits."""
    place = digits - 1 - np.floor(np.log10(np.maximum(np.abs(figures), 1e-9))).astype(np.int64)
    fine, coarse = 10.0 ** np.maximum(place, 0), 10.0 ** np.maximum(-place, 0)
    return np.round(figures / coarse * fine) / fine * coarse
