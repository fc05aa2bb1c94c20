"""Meta's Rebalancer on chunks of demand. Runs in its own environment: rebalancer only, Python 3.13.

    python rebalancer_search.py CHUNKS.json ANSWER.json SECONDS

Objects are chunks of demand with the whole replicas that serve them; containers are pairs of a region and a choice of
hardware, and `unmet`. It answers with the container of every chunk.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from rebalancer import ProblemSolver

ABSOLUTE = 0
"""The binding takes enumerations as numbers: LimitType.ABSOLUTE."""
UNMET = "unmet"
BOUNDLESS = 1e15


def limit(figure: float, **others: dict[str, float]) -> dict[str, Any]:
    """Return an absolute limit with exceptions."""
    return {"type": ABSOLUTE, "globalLimit": figure, **others}


def stated(data: dict[str, Any], seconds: float) -> Any:
    """State the problem in Rebalancer's words.

    Capacity for supply, GroupCount for survival, AvoidAssignments for latency.
    """
    chunks, places = data["chunks"], data["places"]
    names = [chunk["name"] for chunk in chunks]
    solver = ProblemSolver(service_name="rebalancer", service_scope="bench")
    solver.set_object_name("chunk").set_container_name("place").disable_solution_summary()
    start: dict[str, list[str]] = {UNMET: [], **{place["name"]: [] for place in places}}
    for name in names:
        start[data["start"].get(name, UNMET)].append(name)
    solver.set_assignment(start)
    solver.add_scope("region", {UNMET: UNMET, **{place["name"]: place["region"] for place in places}})
    solver.add_object_dimension("qps", {chunk["name"]: chunk["qps"] for chunk in chunks})
    groups: dict[str, list[str]] = {}
    for chunk in chunks:
        groups.setdefault(chunk["model"], []).append(chunk["name"])
    solver.add_partition("model", groups)
    for kind, units in enumerate(data["supply"]):
        taken = {
            place["name"]: {
                c["name"]: c["units"][place["choice"]][kind] for c in chunks if c["units"][place["choice"]][kind]
            }
            for place in places
        }
        solver.add_dynamic_object_dimension(f"units {kind}", "place", taken, 0.0)
        room = limit(0.0, scopeItemLimits={UNMET: BOUNDLESS, **units})
        supply = {"name": f"supply {kind}", "scope": "region", "dimension": f"units {kind}", "limit": room}
        solver.add_constraint({"capacitySpec": supply})
    most = limit(BOUNDLESS, groupLimits=data["most_qps"])
    spread = {"name": "survive", "scope": "region", "partitionName": "model", "dimension": "qps", "limit": most}
    solver.add_constraint({"groupCountSpec": {**spread, "filter": {"itemsBlacklist": [UNMET]}}})
    far = [{"object": chunk["name"], "scopeItems": chunk["far"]} for chunk in chunks if chunk["far"]]
    solver.add_constraint({"avoidAssignmentsSpec": {"name": "latency", "scope": "region", "assignments": far}})
    cost = {place["name"]: {c["name"]: c["cost"][i] for c in chunks} for i, place in enumerate(places)}
    cost[UNMET] = {chunk["name"]: chunk["unmet_cost"] for chunk in chunks}
    solver.add_dynamic_object_dimension("cost", "place", cost, 0.0)
    goal = {"name": "cost", "scope": "place", "dimension": "cost", "limit": limit(0.0)}
    solver.add_goal({"capacitySpec": goal}, 1.0)
    moves: list[dict[str, Any]] = [{"singleMoveTypeSpec": {}}, {"swapMoveTypeSpec": {}}]
    solver.add_solver(
        {"localSearchSolverSpec": {"solveTime": max(1, int(seconds)), "randomSeed": 0, "moveTypeList": moves}}
    )
    return solver


def main(chunks: str, answer: str, seconds: float) -> None:
    """Solves and writes the answer."""
    data = json.loads(Path(chunks).read_text(encoding="utf-8"))
    wall, cpu = time.perf_counter(), time.process_time()
    found = stated(data, seconds).solve()
    written = {
        "status": f"end reason {found['solverSummaries'][-1]['endReason']}",
        "assignment": found["assignment"],
        "bound": None,
        "note": (
            f"its own objective {found['finalObjective']['value']:.6g}, "
            f"broken {found['finalConstraint']['brokenVal']:g}"
        ),
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(answer).write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
