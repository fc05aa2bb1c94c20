"""One peer on one problem, in a process that is measured and may be killed.

    python -m benchmarks.planner.child PEER PROBLEM.json ANSWER.json

Started by `benchmarks.planner.measuring`. Compiled code is warmed up on a tiny problem first; that time, imports and
reading the problem count as set-up, not as the peer's.
"""

import json
import resource
import sys
import time
from pathlib import Path

from benchmarks.planner.peers.catalogue import PEERS, Answer
from ipnext.model.planning.plan import Problem
from planner.generate.generate import generate

COMPILED = ("ours", "greedy", "partition", "rebalancer")
"""Peers whose kernels numba compiles; the code is kept on disk for later processes."""


def main(name: str, source: Path, target: Path) -> None:
    """Run the peer and write its answer."""
    began = time.process_time()
    peer = PEERS[name]
    problem = Problem.model_validate_json(source.read_text(encoding="utf-8"))
    if name in COMPILED:
        PEERS["greedy" if name == "rebalancer" else name].run(generate(models=8, regions=3, hardware=2, supply_use=0.9))
    set_up = time.process_time() - began
    target.with_suffix(".ready").touch()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    answer = peer.run(problem)
    written = _figures(answer, time.perf_counter() - wall, _cpu_seconds() - cpu)
    written["set_up_seconds"] = set_up
    if answer.plan is not None:
        target.with_suffix(".plan.json").write_text(answer.plan.model_dump_json(by_alias=True), encoding="utf-8")
    target.write_text(json.dumps(written), encoding="utf-8")


def _figures(answer: Answer, wall: float, cpu: float) -> dict[str, object]:
    own = answer.own or {}
    return {
        "bound": answer.bound,
        "bound_covers": answer.bound_covers,
        "note": answer.note,
        "cpu_seconds": own.get("cpu_seconds", cpu),
        "wall_seconds": own.get("wall_seconds", wall),
        "peak_mb": own.get("peak_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
