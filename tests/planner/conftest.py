"""Small problems and states, written briefly."""

from collections.abc import Callable
from typing import Any

import pytest

from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import FleetState

Build = Callable[..., Any]


def _model(name: str = "m", demand: dict[str, float] | None = None, **fields: Any) -> dict[str, Any]:
    parts = fields.pop("parts", {"p": {"h": (1.0, 100.0)}})
    least = fields.pop("min_replicas", 1)
    return {
        "model": name,
        "owner": fields.pop("owner", "o"),
        "latency_tolerance_ms": fields.pop("tolerance", 100.0),
        "demand": [{"region": region, "qps": qps} for region, qps in (demand or {"a": 100.0}).items()],
        "parts": [
            {
                "part": part,
                "min_replicas": least,
                "options": [{"hardware": h, "units": units, "qps": qps} for h, (units, qps) in options.items()],
            }
            for part, options in parts.items()
        ],
        **fields,
    }


def _problem(*models: dict[str, Any], supply: dict[str, float], **fields: Any) -> Problem:
    """`supply` is by "region/hardware"; regions lie 10 ms apart; a unit costs 1 $/h unless `unit_cost` says else."""
    regions = fields.pop("regions", ["a", "b"])
    hardware = sorted({key.split("/")[1] for key in supply} | {"h"})
    cost = fields.pop("unit_cost", {})
    rtt = [[1.0 if s == r else 10.0 for r in regions] for s in regions]
    current = {"replicas": fields.pop("replicas", []), "traffic": fields.pop("traffic", [])}
    rows = []
    for key, units in supply.items():
        region, kind = key.split("/")
        rows.append({"region": region, "hardware": kind, "units": units, "unit_cost": cost.get(key, 1.0)})
    return Problem.model_validate(
        {
            "regions": regions,
            "rtt_ms": fields.pop("rtt_ms", rtt),
            "hardware": hardware,
            "supply": rows,
            "models": list(models),
            "current": current,
            "limits": {"gap": 0.0, **fields.pop("limits", {})},
            **fields,
        }
    )


def _state(counts: dict[str, int], traffic: dict[str, float] | None = None) -> FleetState:
    """Counts by "model/part/region/hardware/generation", shares by "model/from/to/generation"."""
    replicas = []
    for key, count in counts.items():
        model, part, region, hardware, generation = key.split("/")
        replicas.append(
            {
                "model": model,
                "part": part,
                "region": region,
                "hardware": hardware,
                "generation": int(generation),
                "count": count,
            }
        )
    shares = []
    for key, fraction in (traffic or {}).items():
        model, origin, to, generation = key.split("/")
        shares.append({"model": model, "from": origin, "to": to, "generation": int(generation), "fraction": fraction})
    return FleetState.model_validate({"replicas": replicas, "traffic": shares})


@pytest.fixture(scope="session")
def model() -> Build:
    return _model


@pytest.fixture(scope="session")
def problem() -> Build:
    return _problem


@pytest.fixture(scope="session")
def state() -> Build:
    return _state
