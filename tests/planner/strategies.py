"""Small problems, plans that keep every rule, and plans that may break any: for hypothesis."""

from collections import defaultdict
from typing import Any

from hypothesis import strategies as st

from ipnext.model.planning.plan import Plan, Problem

REGIONS = ("a", "b", "c")
HARDWARE = ("g", "h")
SLACK = (0.0, 0.5, 7.0)


@st.composite
def fleets(draw: st.DrawFn, most_regions: int = 3) -> dict[str, Any]:
    """Regions, rtt and hardware; every region is 1 ms from itself."""
    regions = list(REGIONS[: draw(st.integers(1, most_regions))])
    rtt = [[1.0 if s == r else draw(st.sampled_from([5.0, 50.0])) for r in regions] for s in regions]
    return {"regions": regions, "rtt_ms": rtt, "hardware": list(HARDWARE)}


@st.composite
def models(draw: st.DrawFn, name: str, regions: list[str]) -> dict[str, Any]:
    """A model with demand above 0 from some region; each demand is reached."""
    demand = [{"region": r, "qps": draw(st.sampled_from([0.0, 30.0, 120.0]))} for r in regions if draw(st.booleans())]
    if not any(item["qps"] for item in demand):
        demand = [{"region": regions[0], "qps": 60.0}]
    parts = [
        {
            "part": part,
            "min_replicas": draw(st.sampled_from([0, 1, 2])),
            "options": [
                {
                    "hardware": hardware,
                    "units": draw(st.sampled_from([0.5, 1.0, 2.0])),
                    "qps": draw(st.sampled_from([40.0, 100.0])),
                }
                for hardware in HARDWARE[: draw(st.integers(1, 2))]
            ],
        }
        for part in ("p", "q")[: draw(st.integers(1, 2))]
    ]
    return {
        "model": name,
        "owner": draw(st.sampled_from(["o0", "o1"])),
        "priority": draw(st.sampled_from([0.5, 2.0])),
        "latency_tolerance_ms": draw(st.sampled_from([1.0, 10.0, 100.0])),
        "survive": draw(st.sampled_from(["region", "none"])),
        "budget_per_hour": draw(st.sampled_from([None, 3.0, 40.0])),
        "demand": demand,
        "parts": parts,
    }


@st.composite
def problems(draw: st.DrawFn, most_models: int = 3, most_regions: int = 3) -> Problem:
    """Valid problems, often with too little supply, all rules in play."""
    document = draw(fleets(most_regions))
    regions = document["regions"]
    stated = [draw(models(f"m{i}", regions)) for i in range(draw(st.integers(0, most_models)))]
    supply = [
        {"region": r, "hardware": h, "units": draw(st.sampled_from([0.0, 1.5, 4.0, 9.0])), "unit_cost": cost}
        for r in regions
        for h, cost in zip(HARDWARE, (1.0, 2.5), strict=True)
        if draw(st.booleans())
    ]
    if not any(item["units"] for item in supply):
        supply = [{"region": regions[0], "hardware": "h", "units": 2.0, "unit_cost": 1.0}]
    return Problem.model_validate(
        {
            **document,
            "supply": supply,
            "owners": [{"owner": "o0", "budget_per_hour": draw(st.sampled_from([None, 5.0, 12.0]))}],
            "models": stated,
            "current": {"replicas": [row for row in draw(placements(stated, regions)) if row["count"]]},
            "objective": {
                "latency_weight": draw(st.sampled_from([0.0, 0.001])),
                "move_cost": draw(st.sampled_from([0.0, 0.5])),
                "unmet_cost": draw(st.sampled_from([0.0, 0.01, 10.0])),
            },
            "limits": {"max_moves": draw(st.sampled_from([None, 0, 3])), "time_seconds": 10.0, "gap": 0.0},
        }
    )


@st.composite
def placements(draw: st.DrawFn, stated: list[dict[str, Any]], regions: list[str]) -> list[dict[str, Any]]:
    """Replicas of the models here and there."""
    return [
        {
            "model": model["model"],
            "part": part["part"],
            "region": region,
            "hardware": option["hardware"],
            "count": draw(st.integers(0, 3)),
        }
        for model in stated
        for part in model["parts"]
        for option in part["options"]
        for region in regions
        if draw(st.integers(0, 2)) == 0
    ]


@st.composite
def plans(draw: st.DrawFn, problem: Problem) -> Plan:
    """Plans of the problem's names that may break any rule; now and then a name or a row is wrong."""
    document = problem.model_dump(mode="json", by_alias=True)
    regions = document["regions"]
    replicas = draw(placements(document["models"], regions))
    traffic = [
        {"model": m["model"], "from": s, "to": r, "fraction": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))}
        for m in document["models"]
        for s in regions
        for r in regions
        if draw(st.integers(0, 2)) == 0
    ]
    unmet = [
        {
            "model": m["model"],
            "region": d["region"],
            "qps": draw(st.sampled_from([0.0, 15.0, 30.0, 130.0])),
            "rules": draw(st.sampled_from([[], ["moves"]])),
        }
        for m in document["models"]
        for d in m["demand"]
        if draw(st.integers(0, 2)) == 0
    ]
    for rows in (replicas, traffic, unmet):
        _spoil(draw, rows)
    figure = st.sampled_from([0.0, 1.0, 2.5, 12.0, 310.0])
    return Plan.model_validate(
        {
            "status": "feasible",
            "objective": draw(figure),
            "bound": draw(figure),
            "gap": draw(st.sampled_from([0.0, 0.5, 1.0])),
            "bound_covers": "",
            "cost_per_hour": draw(figure),
            "replicas": replicas,
            "traffic": traffic,
            "unmet": unmet,
            "solver": {"method": "drawn", "seconds": 0.0},
        }
    )


def _spoil(draw: st.DrawFn, rows: list[dict[str, Any]]) -> None:
    """One time in ten a name is another, or a row stands twice."""
    if not rows or draw(st.integers(0, 9)):
        return
    row = draw(st.sampled_from(rows))
    name = draw(st.sampled_from([name for name, value in row.items() if isinstance(value, str)] + ["twice"]))
    if name == "twice":
        rows.append(dict(row))
    else:
        row[name] = draw(st.sampled_from(["a", "g", "m0", "p", "ghost"]))


@st.composite
def settled(draw: st.DrawFn) -> tuple[Problem, Plan]:
    """A problem and a plan that keeps every rule: the limits are drawn around the plan, often with no room left."""
    document = draw(fleets())
    regions = document["regions"]
    stated = [draw(models(f"m{i}", regions)) for i in range(draw(st.integers(1, 2)))]
    cost = {(r, h): draw(st.sampled_from([1.0, 2.5])) for r in regions for h in HARDWARE}
    rows: dict[str, list[dict[str, Any]]] = {"replicas": [], "traffic": [], "unmet": []}
    for model in stated:
        if len(regions) == 1:
            model["survive"] = "none"
        _settle(draw, model, document, rows)
    used, spent = _taken(stated, rows["replicas"], cost)
    slack = st.sampled_from(SLACK)
    for model in stated:
        model["budget_per_hour"] = draw(st.one_of(st.none(), slack.map(spent["model", model["model"]].__add__)))
    current = [row for row in draw(placements(stated, regions)) if row["count"]]
    running = {_cell(row): row["count"] for row in current}
    started = sum(max(0, row["count"] - running.get(_cell(row), 0)) for row in rows["replicas"])
    problem = {
        **document,
        "supply": [
            {"region": r, "hardware": h, "units": used[r, h] + draw(slack), "unit_cost": cost[r, h]} for r, h in cost
        ],
        "owners": [{"owner": o, "budget_per_hour": spent["owner", o] + draw(slack)} for o in ("o0", "o1")],
        "models": stated,
        "current": {"replicas": current},
        "objective": {"latency_weight": 0.001, "move_cost": 0.5, "unmet_cost": 10.0},
        "limits": {"max_moves": draw(st.sampled_from([None, started, started + 2]))},
    }
    return Problem.model_validate(problem), Plan.model_validate(
        {**_figures(draw, problem, rows, cost, started), **rows}
    )


def _settle(
    draw: st.DrawFn, model: dict[str, Any], document: dict[str, Any], rows: dict[str, list[dict[str, Any]]]
) -> None:
    """Routes, replicas and unmet demand of one model, enough of each."""
    regions, rtt = document["regions"], document["rtt_ms"]
    load: dict[str, float] = defaultdict(float)
    for item in model["demand"]:
        ms = rtt[regions.index(item["region"])]
        near = [r for r, took in zip(regions, ms, strict=True) if took <= model["latency_tolerance_ms"]]
        served = draw(st.sampled_from([1.0, 1.0, 0.5])) if item["qps"] else 1.0
        to = draw(st.lists(st.sampled_from(near), min_size=1, max_size=2, unique=True))
        for region in to:
            fraction = served / len(to)
            rows["traffic"].append(
                {"model": model["model"], "from": item["region"], "to": region, "fraction": fraction}
            )
            load[region] += fraction * item["qps"]
        if served < 1:
            lost = {"model": model["model"], "region": item["region"], "qps": 0.5 * item["qps"], "rules": ["moves"]}
            rows["unmet"].append(lost)
    if model["survive"] == "region":
        for region in draw(st.permutations(regions))[:2]:
            load[region] = sum(load.values())
    for part in model["parts"]:
        for region, qps in load.items():
            option = draw(st.sampled_from(part["options"]))
            count = max(-int(-qps // option["qps"]), part["min_replicas"])
            if count:
                where = {"model": model["model"], "part": part["part"], "region": region}
                rows["replicas"].append({**where, "hardware": option["hardware"], "count": count})


def _cell(row: dict[str, Any]) -> tuple[str, ...]:
    return row["model"], row["part"], row["region"], row["hardware"]


def _taken(
    stated: list[dict[str, Any]], replicas: list[dict[str, Any]], cost: dict[tuple[str, str], float]
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
    """Units by region and hardware, $/h by ("model", its name) and ("owner", its name)."""
    units = {
        (m["model"], p["part"], o["hardware"]): o["units"] for m in stated for p in m["parts"] for o in p["options"]
    }
    owner = {m["model"]: m["owner"] for m in stated}
    used: dict[tuple[str, str], float] = defaultdict(float)
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for row in replicas:
        taken = row["count"] * units[row["model"], row["part"], row["hardware"]]
        used[row["region"], row["hardware"]] += taken
        spent["model", row["model"]] += taken * cost[row["region"], row["hardware"]]
        spent["owner", owner[row["model"]]] += taken * cost[row["region"], row["hardware"]]
    return used, spent


def _figures(
    draw: st.DrawFn,
    problem: dict[str, Any],
    rows: dict[str, list[dict[str, Any]]],
    cost: dict[tuple[str, str], float],
    started: int,
) -> dict[str, Any]:
    """The plan's own figures; its bound is the objective or half of it."""
    regions = problem["regions"]
    qps = {(m["model"], d["region"]): d["qps"] for m in problem["models"] for d in m["demand"]}
    priority = {m["model"]: m["priority"] for m in problem["models"]}
    _, spent = _taken(problem["models"], rows["replicas"], cost)
    hardware = sum(spent["model", m["model"]] for m in problem["models"])
    latency = sum(
        qps[t["model"], t["from"]] * t["fraction"] * problem["rtt_ms"][regions.index(t["from"])][regions.index(t["to"])]
        for t in rows["traffic"]
    )
    missed = sum(priority[u["model"]] * u["qps"] for u in rows["unmet"])
    objective = hardware + 0.001 * latency + 0.5 * started + 10.0 * missed
    gap = draw(st.sampled_from([0.0, 0.5]))
    return {
        "status": "feasible",
        "objective": objective,
        "bound": objective * (1 - gap),
        "gap": gap,
        "bound_covers": "",
        "cost_per_hour": hardware,
        "solver": {"method": "drawn", "seconds": 0.0},
    }
