"""A replan after demand has changed, beside planning the same problem from scratch, in one run.

    python -m benchmarks.planner.replan --models 10000 --noise 0.05 --max-moves 0.02

A drawn fleet is planned; every demand then changes by a drawn share of at most `--noise`; the plan is what runs, and a
replica started costs 0.05 $/h. *adapted* is what a replan does, *from scratch* plans the same problem as if all were to
be chosen again.
"""

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from ipnext.model.planning.plan import CurrentState, Limits, Objective, Problem, RegionDemand
from planner.core.arrays import FleetArrays
from planner.fleet.solver import FleetAnswer, solve_fleet
from planner.generate.generate import generate
from planner.solve import solve
from planner.verify.plan_checker import check


def changed(problem: Problem, noise: float, seed: int) -> Problem:
    """Each demand times a factor drawn between 1 - noise and 1 + noise."""
    draw = np.random.default_rng(seed)
    models = tuple(
        model.model_copy(
            update={
                "demand": tuple(
                    RegionDemand(region=d.region, qps=float(d.qps * draw.uniform(1 - noise, 1 + noise)))
                    for d in model.demand
                )
            }
        )
        for model in problem.models
    )
    return problem.model_copy(update={"models": models})


def row(name: str, answer: FleetAnswer, cpu: float, wall: float) -> tuple[str, ...]:
    """One line of the table."""
    started = sum(single.started for single in answer.configurations)
    unmet = sum(single.unmet for single in answer.configurations)
    figures = (f"{answer.objective:,.0f}", f"{unmet:,.1f}", f"{started:,.0f}", f"{answer.gap:.2%}")
    return (name, *figures, f"{cpu:.1f}", f"{wall:.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, change, plan twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--use", type=float, default=0.9, help="supply use before the change")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--max-moves", type=float, help="cap on replicas started, as a share of those that run")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    fleet = generate(models=asked.models, supply_use=asked.use, seed=asked.seed)
    plan = solve(fleet, method="fleet")
    running = sum(item.count for item in plan.replicas)
    cap = None if asked.max_moves is None else math.floor(asked.max_moves * running)
    update = {
        "current": CurrentState(replicas=plan.replicas, traffic=plan.traffic),
        "objective": Objective(move_cost=0.05, unmet_cost=fleet.objective.unmet_cost),
        "limits": Limits(max_moves=cap, time_seconds=600),
    }
    problem = changed(fleet, asked.noise, asked.seed + 1).model_copy(update=update)
    arrays = FleetArrays.of(problem)
    cap_text = "no cap" if cap is None else f"at most {cap:,} started"
    table = Table("plan", "objective $/h", "unmet QPS", "started", "gap", "CPU-s", "wall s")
    table.title = (
        f"{asked.models:,} models, {running:,} replicas, demand changed by up to {asked.noise:.0%}, {cap_text}"
    )
    seconds = {}
    for name, from_scratch in (("adapted", False), ("from scratch", True)):
        cpu, wall = time.process_time(), time.perf_counter()
        answer = solve_fleet(problem, arrays, from_scratch=from_scratch)
        seconds[name] = (time.process_time() - cpu, answer.objective)
        table.add_row(*row(name, answer, seconds[name][0], time.perf_counter() - wall))
    broken = len(check(problem, solve(problem, method="fleet")))
    console = Console()
    console.print(table)
    faster = seconds["from scratch"][0] / seconds["adapted"][0]
    dearer = seconds["adapted"][1] / seconds["from scratch"][1] - 1
    console.print(f"adapted: {faster:.1f} times faster, {dearer:+.2%} in objective; rules broken by the plan: {broken}")


if __name__ == "__main__":
    main()
