"""What a history is about: a fleet and its models, drawn from a seed.

Plain values with the names that the real code reads.
"""

from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

from ipnext.model.fleet import FleetSpec, HardwareOption, SupplyItem
from ipnext.model.manifest.part import PartSpec

REGIONS = ("ap", "br", "ca", "de", "es", "fr")
HARDWARE = ("cpu", "gpu", "tpu")
PARTS = ("dense", "head", "seq", "sparse", "tower")


class Plain(SimpleNamespace):
    """A plain value that is copied as those of the real code are."""

    def model_copy(self, *, update: dict[str, Any]) -> "Plain":
        """Return a copy with other values of some attributes."""
        return type(self)(**(vars(self) | update))


class Spec(Plain):
    """The spec of a manifest. Its parts are neither split nor adapters."""

    split = None

    @property
    def hosted_parts(self) -> tuple[PartSpec, ...]:
        """All parts."""
        return tuple(self.parts)


@dataclass
class ModelSpec:
    """One model: its manifest as it was applied last, and how it rolls out."""

    name: str
    manifest: Any
    refresh: str
    load_seconds: float
    demand_scale: float = 1.0

    @property
    def rollout(self) -> Any:
        """Canary, step, hold, deadline, error rate, generations kept warm."""
        return self.manifest.spec.rollout

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its parts."""
        return tuple(part.name for part in self.manifest.spec.parts)

    @property
    def demand(self) -> dict[str, float]:
        """Requests a second by region."""
        return {item.region: item.qps for item in self.manifest.spec.demand}


@dataclass
class Scenario:
    """A fleet, its models and how much goes wrong."""

    fleet: FleetSpec
    models: dict[str, ModelSpec]
    requests: int
    """Changes that people ask for."""
    trouble: float
    """0: nothing fails; 1: something always does."""
    counted: dict[str, int] = field(default_factory=dict)


def draw_scenario(random: Random, swaps: Random | None = None) -> Scenario:
    """Mostly small worlds, a long tail of large ones.

    By `swaps` half of the models that replace go over in place instead.
    """
    large = random.random() < 0.04
    regions = REGIONS[: random.choice((1, 2, 2, 3, 3, 4) if not large else (4, 5, 6))]
    hardware = HARDWARE[: random.choice((1, 1, 2, 3))]
    count = random.choice((1, 1, 2, 2, 3, 4))
    models = {f"m{n}": _model(random, f"m{n}", regions, hardware, large=large and n == 0) for n in range(count)}
    found = Scenario(
        fleet=_fleet(random, regions, hardware, models),
        models=models,
        requests=random.choice((1, 2, 3, 4, 5, 6)),
        trouble=random.choice((0.0, 0.1, 0.3, 0.6)),
    )
    for spec in models.values():
        vars(spec.rollout).update(_owners_wish(random))
        if swaps is not None and spec.refresh == "replace" and swaps.random() < 0.5:
            spec.refresh = "swap"
    return found


def _owners_wish(random: Random) -> dict[str, Any]:
    """What the owner wants where units are short, and whom a rollout waits for."""
    short = random.choice(("surge", "surge", "dip", "wait"))
    return {
        "when_short": short,
        "max_dip": random.choice((0.2, 0.5)) if short == "dip" else 0.0,
        "approval": random.choice(("none", "none", "none", "canary", "each")),
        "manual_deadline_seconds": random.choice((20.0, 60.0, 200.0)),
    }


def _model(random: Random, name: str, regions: tuple[str, ...], hardware: tuple[str, ...], *, large: bool) -> ModelSpec:
    parts = random.sample(PARTS, random.choice((1, 1, 2, 2, 3) if not large else (3, 4, 5)))
    most = random.choice((1, 2, 3, 4, 6)) if not large else random.choice((10, 20, 40, 60))
    wishing = random.sample(regions, random.randint(1, len(regions)))
    spec = Spec(
        priority=1.0,
        latency_tolerance_ms=100.0,
        survive="none",
        budget_per_hour=None,
        demand=[demand_item(region, float(random.randint(1, 10 * most))) for region in sorted(wishing)],
        parts=tuple(part_of(random, part, hardware) for part in sorted(parts)),
        rollout=SimpleNamespace(
            canary=random.choice((0.05, 0.1, 0.25, 1.0)),
            max_step=random.choice((0.25, 0.5, 0.5, 1.0)),
            hold_seconds=random.choice((0.0, 0.0, 5.0, 60.0)),
            max_error_rate=0.01,
            deadline_seconds=random.choice((30.0, 60.0, 120.0)),
            keep_warm=random.choice((0, 1, 1, 2)),
            on_newer=random.choice(("finish", "finish", "turn")),
        ),
    )
    manifest = Plain(name=name, metadata=SimpleNamespace(owner=f"o{random.randint(0, 1)}"), spec=spec)
    return ModelSpec(
        name=name,
        manifest=manifest,
        refresh=random.choice(("in_place", "in_place", "replace")),
        load_seconds=random.choice((0.5, 2.0, 8.0)),
    )


def part_of(random: Random, name: str, hardware: tuple[str, ...]) -> PartSpec:
    """A part on some of the hardware."""
    kinds = random.sample(hardware, random.randint(1, len(hardware)))
    options = tuple(
        HardwareOption(kind=kind, units=random.choice((0.5, 1.0, 1.0, 2.0)), qps=random.choice((5.0, 10.0, 10.0, 25.0)))
        for kind in sorted(kinds)
    )
    return PartSpec(name=name, hardware=options)


def _fleet(
    random: Random, regions: tuple[str, ...], hardware: tuple[str, ...], models: dict[str, ModelSpec]
) -> FleetSpec:
    """Supply from very tight to loose, as a multiple of what all models need if each region serves its share."""
    needed = sum(
        qps * max(option.units / option.qps for option in part.hardware)
        for model in models.values()
        for qps in model.demand.values()
        for part in model.manifest.spec.parts
    )
    factor = random.choice((0.7, 1.0, 1.3, 2.0, 4.0))
    supply = tuple(
        SupplyItem(
            region=region,
            hardware=kind,
            units=float(max(2, round(factor * needed / len(regions) * random.uniform(0.7, 1.3)))),
            unit_cost=1.0,
        )
        for region in regions
        for kind in hardware
    )
    rtt = tuple(tuple(1.0 if s == r else 20.0 for r in regions) for s in regions)
    return FleetSpec(regions=regions, rtt_ms=rtt, hardware=hardware, supply=supply)


def demand_item(region: str, qps: float) -> SimpleNamespace:
    """What users of a region ask for; the model's unit is requests/s."""
    return SimpleNamespace(region=region, qps=qps, amount=qps)
