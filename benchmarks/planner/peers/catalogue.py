"""Who is measured, and how each one gets from a problem to an answer.

Runs inside `benchmarks.planner.child`, one peer a process.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.planner.holding import Holding
from benchmarks.planner.peers.chunks import Chunks
from benchmarks.planner.peers.greedy import solve_greedily
from benchmarks.planner.peers.partition import solve_partition
from benchmarks.planner.peers.program import Program
from benchmarks.planner.side_venvs import python_of
from ipnext.model.planning.plan import Plan, Problem
from planner.core.arrays import FleetArrays, Floats
from planner.core.index import Index
from planner.core.solution import route_traffic, trim_replicas
from planner.solve import solve

SIDE = Path(__file__).parent / "side"
NOTHING = "nothing"


@dataclass(frozen=True)
class Answer:
    """What a peer came to. `plan` is None for a relaxation; `own` has figures measured by a process of its own."""

    plan: Plan | None
    bound: float | None
    bound_covers: str
    note: str = ""
    own: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Peer:
    """A peer: its name, what it is in words, its side environment, and the most models it is asked for by default."""

    name: str
    what: str
    run: Callable[[Problem], Answer]
    side: str | None = None
    most_models: int = 1_000_000


def _ours(problem: Problem) -> Answer:
    plan = solve(problem, method="fleet")
    return Answer(plan, plan.bound, plan.bound_covers, plan.solver.method)


def _reference(problem: Problem) -> Answer:
    plan = solve(problem, method="reference")
    return Answer(plan, plan.bound, plan.bound_covers, plan.solver.method)


def _greedy(problem: Problem) -> Answer:
    return Answer(solve_greedily(problem).plan("greedy best fit"), None, NOTHING)


def _partition(problem: Problem) -> Answer:
    return Answer(solve_partition(problem, "fleet").plan("partition"), None, NOTHING)


def _cp_sat(problem: Problem) -> Answer:
    found, program = _on_program(problem, "ortools", "cp_sat.py")
    covers = "all plans, in scaled whole numbers"
    plan = None
    if found["values"] is not None:
        plan = _extracted(problem, program.counts(found["values"])).plan("CP-SAT", found["bound"], covers)
    return Answer(plan, found["bound"], covers, found["status"], _own(found))


def _pdlp(problem: Problem) -> Answer:
    found, _ = _on_program(problem, "ortools", "pdlp.py")
    covers = "all plans with divisible replicas, to PDLP's tolerance"
    return Answer(None, found["bound"], covers, f"{found['status']}: {found['note']}", _own(found))


def _dede(problem: Problem) -> Answer:
    found, _ = _on_program(problem, "dede", "dede_admm.py")
    return Answer(None, None, NOTHING, found["note"], _own(found))


def _rebalancer(problem: Problem) -> Answer:
    chunks = Chunks(problem)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chunks.json"
        path.write_text(json.dumps(chunks.document()), encoding="utf-8")
        found = _side("rebalancer", "rebalancer_search.py", path, problem.limits.time_seconds)
    plan = _extracted(problem, chunks.counts(found["assignment"])).plan("Rebalancer")
    return Answer(plan, None, NOTHING, f"{found['status']}: {found['note']}", _own(found))


def _on_program(problem: Problem, side: str, script: str) -> tuple[dict[str, Any], Program]:
    program = Program(FleetArrays.of(problem))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.npz"
        program.write(path)
        return _side(side, script, path, problem.limits.time_seconds), program


def _side(side: str, script: str, path: Path, seconds: float) -> dict[str, Any]:
    """Run a script in a side environment, and return its answer."""
    answer = path.with_name("answer.json")
    command = [str(python_of(side)), str(SIDE / script), str(path), str(answer), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not answer.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        msg = f"{script} ended with {done.returncode}: {last}"
        raise RuntimeError(msg)
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _own(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(found[name]) for name in ("cpu_seconds", "wall_seconds", "peak_mb")}


def _extracted(problem: Problem, counts: Mapping[int, Floats]) -> Holding:
    """Traffic for whole replicas, and no replicas beyond it.

    The planner's own extraction, for peers that know counts only.
    """
    index = Index(problem)
    keyed = {
        (model.model, part.part, region, option.hardware): int(counts[m][o, r])
        for m, model in enumerate(problem.models)
        if m in counts
        for o, (part, option) in enumerate((part, option) for part in model.parts for option in part.options)
        for r, region in enumerate(problem.regions)
        if counts[m][o, r] > 0
    }
    shares = route_traffic(index, keyed)
    kept = trim_replicas(index, keyed, [shares.get(route.key, 0.0) for route in index.routes])
    holding = Holding(problem)
    holding.add(kept, route_traffic(index, kept))
    return holding


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("ours", "IPnext: prices and configurations", _ours),
        Peer("greedy", "best fit by priority, the best of three orders", _greedy),
        Peer("mip", "the compact program in cvxpy, HiGHS", _reference, most_models=300),
        Peer("partition", "POP-style: random groups, our solver on each", _partition),
        Peer("cp-sat", "OR-tools CP-SAT, scaled whole numbers", _cp_sat, "ortools", 1_000),
        Peer("pdlp", "OR-tools PDLP, the relaxation alone", _pdlp, "ortools", 3_000),
        Peer("rebalancer", "Meta's Rebalancer on chunks of demand", _rebalancer, "rebalancer", 1_000),
        Peer("dede", "DeDe's ADMM on the relaxation", _dede, "dede", 100),
    )
}
