"""A planner problem on real ranking services: what public data there is, and draws for what there is not.

Real (see docs/planner-benchmarks.md for origins and licences): the services with their CPU part (CN) and GPU part (HN),
how many instances each part has and what one asks for; round-trip times between ten regions; the mix of GPU kinds and
CPUs of a fleet of nodes; how prices differ between regions. Drawn: demand and where it comes from, tolerances,
survival, priorities, owners, the speed and price of each kind, which region has how much. The data stays where it is;
nothing of it is copied here.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import Problem
from planner.core.arrays import Floats

SERVICES = "ali_gpu-v2025__disaggregated_DLRM_trace.csv"
NODES = "ali_gpu-v2023__openb_node_list_all_node.csv"
RTT = "ibm_rtt_2024-03-03.csv"
PRICES = "gcp_tpu_v6e_price.csv"

NEAREST_PRICED = {
    "Dallas": "us-south1",
    "Toronto": "us-east5",
    "WashingtonDC": "us-east4",
    "Frankfurt": "europe-west4",
    "London": "europe-west4",
    "Madrid": "europe-west4",
    "Osaka": "asia-northeast1",
    "Sydney": "asia-southeast1",
    "Tokyo": "asia-northeast1",
    "SaoPaulo": "asia-northeast1",
}
"""The priced region whose multiplier each region gets; for Sydney and Sao Paulo that is a guess: none near them is
priced."""
CPU_PRICE = 0.04
"""$/h a vCPU: assumed."""
GPUS = {"G2": (1.6, 0.8), "G3": (3.0, 1.7), "P100": (1.3, 0.7), "T4": (1.0, 0.5), "V100": (2.2, 1.2)}
"""Speed and $/h of one GPU of each kind, relative to a T4: assumed (G2 and G3 are the trace's names for kinds it does
not tell)."""
COMMON = "G2"
"""Most of the GPUs are of this kind: every service can run on it, and on two others."""
TOLERANCES_MS = (60.0, 100.0, 150.0, 250.0, 400.0)
STANDBY = 4 / 3
"""Capacity that surviving the loss of one of four equal regions takes."""


@dataclass(frozen=True)
class Service:
    """One service of the trace."""

    name: str
    instances: Mapping[str, int]
    """By role, CN and HN."""
    cpus: float
    """vCPUs that a CN instance asks for (the most frequent request)."""


def compose(data: Path, *, supply_use: float = 0.8, seed: int = 0) -> Problem:
    """Compose the 156 services in ten regions.

    `supply_use`: CPUs, and GPUs weighed by their speed, that the real numbers of instances take (and a third more for
    services that survive the loss of a region) divided by those supplied. Whole replicas take more. Raises InvalidInput
    for a missing file.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    services, (regions, rtt) = _services(data), _rtt(data)
    survives = rng.random(len(services)) < 0.5
    users = rng.lognormal(0.0, 0.6, len(regions))
    models = [_model(rng, s, (regions, users), bool(survives[m])) for m, s in enumerate(services)]
    factor = np.where(survives, STANDBY, 1.0)
    cpus = sum(f * s.instances["CN"] * s.cpus for f, s in zip(factor, services, strict=True)) / supply_use
    fast = sum(f * s.instances["HN"] for f, s in zip(factor, services, strict=True)) / supply_use
    gpus = _gpus(data)
    by_speed = sum(number * GPUS[kind][0] for kind, number in gpus.items())
    totals = {"cpu": cpus, **{kind: fast * number / by_speed for kind, number in gpus.items()}}
    supply = _supply(rng, data, (regions, users), totals)
    return Problem.model_validate(
        {"regions": regions, "rtt_ms": rtt, "hardware": tuple(totals), "supply": supply, "models": models}
    )


def _rows(data: Path, name: str) -> list[dict[str, str]]:
    path = data / name
    if not path.is_file():
        msg = f"--data: {name} is missing in {data}"
        raise InvalidInput(msg, field="--data", value=str(data), allowed=[f"a folder with {name}"])
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _services(data: Path) -> list[Service]:
    roles: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"CN": [], "HN": []})
    for row in _rows(data, SERVICES):
        roles[row["app_name"]][row["role"]].append(float(row["cpu_request"]))
    return [
        Service(name, {role: len(asked) for role, asked in parts.items()}, Counter(parts["CN"]).most_common(1)[0][0])
        for name, parts in sorted(roles.items(), key=lambda item: int(item[0].removeprefix("app_")))
    ]


def _rtt(data: Path) -> tuple[tuple[str, ...], list[list[float]]]:
    rows = _rows(data, RTT)
    regions = tuple(row["region"] for row in rows)
    return regions, [[float(row[region]) for region in regions] for row in rows]


def _gpus(data: Path) -> dict[str, int]:
    """Count the GPUs in the node list by kind; 16 and 32 GB V100s are one kind, the two A10s are left out."""
    total: dict[str, int] = defaultdict(int)
    for row in _rows(data, NODES):
        total[row["model"].split("M")[0]] += int(row["gpu"])
    return {kind: total[kind] for kind in GPUS}


def _multipliers(data: Path) -> dict[str, float]:
    """Of each region's prices: that of the nearest priced region over the cheapest."""
    price = {row["region"]: float(row["ondemand_usd_h"]) for row in _rows(data, PRICES)}
    return {region: price[near] / min(price.values()) for region, near in NEAREST_PRICED.items()}


def _model(
    rng: np.random.Generator, service: Service, users: tuple[tuple[str, ...], Floats], survives: bool
) -> dict[str, Any]:
    """One service: its demand is what its real instances of both parts serve on hardware of speed 1."""
    regions, weight = users
    total = service.instances["HN"] * 100.0 * rng.lognormal(0.0, 0.5)
    asked = rng.random(len(regions)) < rng.uniform(0.2, 1.0)
    asked[rng.choice(len(regions), p=weight / weight.sum())] = True
    share = asked * weight * rng.lognormal(0.0, 0.5, len(regions))
    qps = total * share / share.sum()
    others = rng.choice([kind for kind in GPUS if kind != COMMON], 2, replace=False)
    of_gpu = []
    for kind in sorted([COMMON, *map(str, others)]):
        speed = GPUS[kind][0] * rng.lognormal(0.0, 0.15)
        of_gpu.append({"hardware": kind, "units": 1.0, "qps": _short(total / service.instances["HN"] * speed)})
    of_cpu = {"hardware": "cpu", "units": service.cpus, "qps": _short(total / service.instances["CN"])}
    return {
        "model": service.name.replace("_", "-"),
        "owner": f"team-{rng.integers(1, 13)}",
        "priority": float(rng.choice([0.5, 1.0, 2.0, 4.0], p=[0.2, 0.6, 0.15, 0.05])),
        "latency_tolerance_ms": float(rng.choice(TOLERANCES_MS)),
        "survive": "region" if survives else "none",
        "demand": [{"region": r, "qps": _short(q)} for r, q in zip(regions, qps, strict=True) if q > 0],
        "parts": [{"part": "cn", "options": [of_cpu]}, {"part": "hn", "options": of_gpu}],
    }


def _supply(
    rng: np.random.Generator, data: Path, places: tuple[tuple[str, ...], Floats], totals: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Totals of each kind spread over the regions, roughly as the users are."""
    regions, users = places
    multiplier = _multipliers(data)
    share = users[:, None] ** 0.8 * rng.lognormal(0.0, 0.2, (len(regions), len(totals)))
    share /= share.sum(axis=0)
    return [
        {
            "region": region,
            "hardware": kind,
            "units": float(np.floor(total * share[r, h])),
            "unit_cost": _short((CPU_PRICE if kind == "cpu" else GPUS[kind][1]) * multiplier[region]),
        }
        for r, region in enumerate(regions)
        for h, (kind, total) in enumerate(totals.items())
    ]


def _short(figure: float) -> float:
    return float(f"{figure:.4g}")
