"""A fleet from one plan to the next, on one supply: waves, surge and seconds, beside one model after another.

    python -m benchmarks.transition.fleet --models 1000 --use 0.9
    python -m benchmarks.transition.fleet --models 100,300,1000 --use 0.8,0.9,0.97 --docs

Two drawn states of models of three parts in six regions on four kinds of hardware: each model serves from one to three
regions, and from others in the second state; some publish at the same time, each snapshot with processes of its own.
Supply use is what the larger of the two states takes of each row. The baseline takes one model after another by name,
each the whole of its way in the same steps, again and again until none of those that are left fits.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.environments import ROOT
from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import FleetState
from planner.transition.instance import TransitionInstance
from planner.transition.model_state import ModelState, group_by_model
from planner.transition.planner import StepPolicy, check_transition, plan_transition
from planner.transition.trajectory import Trajectory

PAGE = ROOT / "docs" / "transition.md"
BEGIN, END = "<!-- measured: fleet -->", "<!-- end -->"
REGIONS = ("r0", "r1", "r2", "r3", "r4", "r5")
KINDS = ("k0", "k1", "k2", "k3")
PARTS = 3
HEADS = (
    "models",
    "that move",
    "supply use",
    "waves",
    "one after another",
    "left over by it",
    "surge, of the supply",
    "plan s",
    "check s",
    "one after another s",
)


@dataclass(frozen=True)
class Case:
    """A problem, the two states and the policies."""

    problem: Problem
    origin: FleetState
    to: FleetState
    policies: dict[str, StepPolicy]

    @classmethod
    def drawn(cls, models: int, use: float, seed: int, publishing: float) -> "Case":
        """Two drawn states; `publishing` of the models are of generation 2 in the second one."""
        rng = np.random.Generator(np.random.PCG64(seed))
        stated = [_model(rng, f"m{number}") for number in range(models)]
        generations = np.where(rng.random(models) < publishing, 2, 1).tolist()
        origin = [_standing(rng, model, 1) for model in stated]
        to = [_standing(rng, model, generation) for model, generation in zip(stated, generations, strict=True)]
        most = np.maximum(_units(stated, origin), _units(stated, to))
        supply = [
            {"region": r, "hardware": h, "units": math.floor(most[i, k] / use), "unit_cost": 1.0}
            for i, r in enumerate(REGIONS)
            for k, h in enumerate(KINDS)
        ]
        places = {"regions": REGIONS, "rtt_ms": [[1.0] * len(REGIONS)] * len(REGIONS), "hardware": KINDS}
        problem = Problem.model_validate({**places, "supply": supply, "models": stated})
        policies = {model["model"]: StepPolicy(refresh="replace") for model in stated}
        return cls(problem, _state(origin), _state(to), policies)


Rows = dict[str, list[dict[str, Any]]]


def _model(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """Three parts, each on one kind; users in every region."""
    options = [
        {"hardware": str(rng.choice(KINDS)), "units": float(rng.choice([1, 2, 4])), "qps": float(rng.uniform(20, 200))}
        for _ in range(PARTS)
    ]
    demand = [{"region": r, "qps": float(rng.uniform(50, 2000))} for r in REGIONS]
    parts = [{"part": f"p{k}", "options": [option]} for k, option in enumerate(options)]
    return {"model": name, "owner": "o", "latency_tolerance_ms": 100.0, "demand": demand, "parts": parts}


def _standing(rng: np.random.Generator, model: dict[str, Any], generation: int) -> Rows:
    """Traffic split over one to three drawn regions, and just enough replicas."""
    serves = rng.choice(len(REGIONS), size=int(rng.integers(1, 4)), replace=False)
    rows: Rows = {"replicas": [], "traffic": []}
    load = np.zeros(len(REGIONS))
    for item in model["demand"]:
        shares = np.round(rng.dirichlet(np.ones(len(serves))), 3)
        shares[-1] = round(1.0 - shares[:-1].sum(), 3)
        for region, share in zip(serves, shares.tolist(), strict=True):
            load[region] += share * item["qps"]
            flow = {"model": model["model"], "from": item["region"], "to": REGIONS[region]}
            rows["traffic"] += [{**flow, "generation": generation, "fraction": share}] if share > 0 else []
    for part in model["parts"]:
        (option,) = part["options"]
        for region in np.flatnonzero(load):
            place = {"model": model["model"], "part": part["part"], "region": REGIONS[region]}
            count = math.ceil(load[region] / option["qps"])
            rows["replicas"].append({**place, "hardware": option["hardware"], "generation": generation, "count": count})
    return rows


def _units(stated: list[dict[str, Any]], rows: list[Rows]) -> Any:
    """(regions, kinds) units."""
    units = {(m["model"], p["part"]): p["options"][0]["units"] for m in stated for p in m["parts"]}
    total = np.zeros((len(REGIONS), len(KINDS)))
    for row in (row for of_model in rows for row in of_model["replicas"]):
        place = REGIONS.index(row["region"]), KINDS.index(row["hardware"])
        total[place] += row["count"] * units[row["model"], row["part"]]
    return total


def _state(rows: list[Rows]) -> FleetState:
    joined = {key: [row for of_model in rows for row in of_model[key]] for key in ("replicas", "traffic")}
    return FleetState.model_validate(joined)


def one_after_another(case: Case) -> tuple[int, int]:
    """Waves, and the models that are left when no model alone can go the whole of its way."""
    origin, to = group_by_model(case.origin), group_by_model(case.to)
    trajectory, waves = Trajectory.begin(TransitionInstance(case.problem, case.policies, origin), origin), 0
    left = trajectory.pending_models(to)
    while True:
        stay = len(left)
        for model in list(left):
            moved = trajectory.advance({**trajectory.states, model: to.get(model, ModelState())}, attempts=1)
            if moved.state_of(model) == to.get(model, ModelState()):
                waves += sum(len(schedule.positions) - 1 for schedule in moved.schedules[len(trajectory.schedules) :])
                trajectory = moved
                left.remove(model)
        if len(left) in {0, stay}:
            return waves, len(left)


def row(models: int, use: float, seed: int, publishing: float) -> tuple[str, ...]:
    """Return the cells of one fleet."""
    case = Case.drawn(models, use, seed, publishing)
    began = time.perf_counter()
    planned = plan_transition(case.problem, case.origin, case.to, case.policies)
    seconds, began = time.perf_counter() - began, time.perf_counter()
    broken = check_transition(case.problem, planned, case.policies)
    checked, began = time.perf_counter() - began, time.perf_counter()
    naive, left = one_after_another(case)
    naive_seconds = time.perf_counter() - began
    waves = "refused" if planned.refused else "invalid" if broken else str(len(planned.waves))
    origin, to = group_by_model(case.origin), group_by_model(case.to)
    moving = sum(origin.get(m) != to.get(m) for m in origin.keys() | to.keys())
    share = sum(item.units for item in planned.surge) / sum(item.units for item in case.problem.supply)
    figures = (f"{share:.2%}", f"{seconds:.2f}", f"{checked:.2f}", f"{naive_seconds:.2f}")
    return (f"{models:,}", f"{moving:,}", f"{use:g}", waves, f"{naive:,}", f"{left:,}", *figures)


def numbers(text: str) -> list[float]:
    """Parse an argument of comma-separated numbers."""
    return [float(number) for number in text.split(",") if number]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return the table for the page."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [HEADS, ("---",) * len(HEADS), *lines])


def main() -> None:
    """Measures, and writes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=numbers, default=[1000.0], help="numbers of models, 100,1000,...")
    parser.add_argument("--use", type=numbers, default=[0.9], help="supply use of the plans, 0.8,0.9,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publishing", type=float, default=0.3, help="fraction of the models that publish, too")
    parser.add_argument("--docs", action="store_true", help=f"rewrite the table of {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    lines = [row(int(models), use, asked.seed, asked.publishing) for models in asked.models for use in asked.use]
    table = Table(*HEADS)
    for cells in lines:
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if asked.docs:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{markdown(lines)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
