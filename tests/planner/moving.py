"""Drawn transitions of small fleets: several models on one supply, origins in mid-flight, little room or none."""

from collections import Counter, defaultdict
from typing import Any

from hypothesis import strategies as st

from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import FleetState
from planner.core.step_policy import StepPolicy

REGIONS = ("a", "b", "c")
HARDWARE = ("h", "k")
QPS = (10.0, 25.0, 100.0)

policies = st.builds(
    StepPolicy,
    canary=st.sampled_from([0.01, 0.1, 1.0]),
    max_step=st.sampled_from([0.07, 0.3, 1.0]),
    refresh=st.sampled_from(["replace", "in_place", "swap"]),
    when_short=st.sampled_from(["surge", "dip", "wait"]),
    max_dip=st.sampled_from([0.0, 0.2, 0.5]),
)


@st.composite
def moving_fleets(
    draw: st.DrawFn, policy: st.SearchStrategy[StepPolicy] = policies
) -> tuple[Problem, FleetState, FleetState, dict[str, StepPolicy]]:
    """A problem, a state in which up to three generations of a model serve, a settled one, and each model's policy.

    Parts, regions, hardware and models may come and go between the states, which both fit the supply.
    """
    regions, kinds = REGIONS[: draw(st.integers(1, 3))], HARDWARE[: draw(st.integers(1, 2))]
    stated = [_model(draw, f"m{i}", regions, kinds) for i in range(draw(st.integers(1, 4)))]
    chosen = {model["model"]: draw(policy) for model in stated}
    ends: list[dict[str, list[Any]]] = []
    used: list[Counter[tuple[str, str]]] = []
    for most in (3, 1):
        ends.append({"replicas": [], "traffic": []})
        used.append(Counter())
        for model in stated:
            if draw(st.integers(0, 9)):
                apart = chosen[model["model"]].refresh != "in_place"
                _stand(draw, model, regions, draw(st.integers(1, most)), apart, (ends[-1], used[-1]))
    slack = st.sampled_from(draw(st.sampled_from([[0.0], [0.0, 1.0, 3.0], [20.0]])))
    supply = [
        {"region": r, "hardware": h, "units": max(taken[r, h] for taken in used) + draw(slack), "unit_cost": 1.0}
        for r in regions
        for h in kinds
    ]
    rtt = [[1.0 if s == r else 10.0 for r in regions] for s in regions]
    problem = {"regions": regions, "rtt_ms": rtt, "hardware": kinds, "supply": supply, "models": stated}
    origin, to = (FleetState.model_validate(end) for end in ends)
    return Problem.model_validate(problem), origin, to, chosen


def _model(draw: st.DrawFn, name: str, regions: tuple[str, ...], kinds: tuple[str, ...]) -> dict[str, Any]:
    options = st.builds(
        lambda hardware, units, qps: {"hardware": hardware, "units": units, "qps": qps},
        st.sampled_from(kinds),
        st.sampled_from([0.5, 1.0, 2.0]),
        st.sampled_from(QPS),
    )
    several = st.lists(options, min_size=1, max_size=2, unique_by=lambda option: option["hardware"])
    return {
        "model": name,
        "owner": "o",
        "latency_tolerance_ms": draw(st.sampled_from([100.0, 5.0])),
        "demand": [{"region": r, "qps": draw(st.sampled_from([0.0, 30.0, 100.0, 250.0]))} for r in regions],
        "parts": [{"part": f"p{i}", "options": draw(several)} for i in range(draw(st.integers(1, 3)))],
    }


def _stand(
    draw: st.DrawFn,
    model: dict[str, Any],
    regions: tuple[str, ...],
    generations: int,
    apart: bool,
    end: tuple[dict[str, list[Any]], Counter[tuple[str, str]]],
) -> None:
    """Traffic of a model split over regions and generations, and replicas that hold it."""
    (rows, used), numbers = end, draw(st.permutations([1, 2, 3]))[:generations]
    load: dict[tuple[str, int], float] = defaultdict(float)
    for item in model["demand"]:
        near = [r for r in regions if model["latency_tolerance_ms"] > 10 or r == item["region"]]
        flows = [(r, g) for r in near for g in numbers]
        taken = draw(st.lists(st.sampled_from(flows), min_size=1, max_size=3, unique=True))
        for (region, generation), share in zip(taken, draw(st.permutations(SPLITS[len(taken)])), strict=True):
            row = {"model": model["model"], "from": item["region"], "to": region}
            rows["traffic"].append({**row, "generation": generation, "fraction": share})
            load[region, generation] += share * item["qps"]
    for part in model["parts"]:
        _place(draw, (model["model"], part), load, apart, (rows, used))


SPLITS = {1: (1.0,), 2: (0.3, 0.7), 3: (0.125, 0.25, 0.625)}


def _place(
    draw: st.DrawFn,
    of: tuple[str, dict[str, Any]],
    load: dict[tuple[str, int], float],
    apart: bool,
    end: tuple[dict[str, list[Any]], Counter[tuple[str, str]]],
) -> None:
    (model, part), (rows, used) = of, end
    for region in sorted({region for region, _ in load}):
        option = draw(st.sampled_from(part["options"]))
        own = {g: qps for (r, g), qps in load.items() if r == region}
        asked = own if apart else dict.fromkeys(own, sum(own.values()))
        spare = draw(st.sampled_from([0, 0, 0, 2]))
        counts = {g: int(-(-(qps + 1e-9) // option["qps"])) + spare for g, qps in asked.items()}
        for generation, count in counts.items():
            row = {"model": model, "part": part["part"], "region": region, "hardware": option["hardware"]}
            rows["replicas"].append({**row, "generation": generation, "count": count})
        used[region, option["hardware"]] += option["units"] * (sum if apart else max)(counts.values())
