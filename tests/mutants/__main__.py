"""Draw mutants of the pure modules, run the fast tier on each, and list the survivors.

    python -m tests.mutants --sample 200 --seed 1 --processes 2 --json out.json

Each mutant lies in a copy of the repository. First the tests run that import its module, then the other pure tests of
the folder that mirrors its package. A mutant whose tests take longer than `--seconds` counts as killed: it hangs.
Before that, the same tests have to pass without a fault. Mutants of `tests.mutants.equivalent` are left out. Exit
status 1 if fewer than `--least` of the others are killed.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.mutation import Mutant, list_mutants, mutate, quote

Answer = TypeVar("Answer")
ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    *("planner/core/solution.py", "planner/core/diff.py", "planner/core/residual.py", "planner/core/unmet_reasons.py"),
    *("planner/plan_fit.py", "planner/owner_priority.py", "planner/last_resort.py", "planner/verify/plan_checker.py"),
    *("serving/routing/load_balancer.py", "serving/routing/sync_policy.py", "serving/routing/admission.py"),
    *("serving/routing/retries.py", "serving/protocol/v2.py", "serving/protocol/tensors.py"),
    *("serving/protocol/frames.py", "serving/protocol/json_size.py"),
    *(
        "activities/state/wave_state.py",
        "activities/state/routes/failover_shares.py",
        "activities/state/replica_sets.py",
    ),
    *("activities/transition/gate/verdict.py", "activities/transition/revert.py"),
    *("activities/transition/step_limit.py", "activities/transition/route_updates.py"),
    *("workflows/entity/change_queue.py", "workflows/entity/state.py"),
    *("ipnext/access/keys.py", "ipnext/freezes/evaluation.py"),
)
"""Modules without a process, a server or a compiled kernel."""


class Result(NamedTuple):
    """A mutant and the test that found it; None if it survived."""

    module: str
    line: int
    fault: str
    killed_by: str | None


def draw(modules: Sequence[str], sample: int, seed: int) -> list[tuple[str, Mutant]]:
    """Return mutants of the modules, each as likely as another one."""
    found = [(module, mutant) for module in modules for mutant in list_mutants((ROOT / module).read_text())]
    return random.Random(seed).sample(found, min(sample, len(found)))


def is_equivalent(module: str, mutant: Mutant) -> bool:
    """Check whether a mutant is named as one that behaves like its module."""
    return (module, quote((ROOT / module).read_text(), mutant), mutant.fault) in EQUIVALENT


def tests_of(module: str) -> tuple[list[str], list[str]]:
    """Return the test files that import a module, and the folders that mirror its package."""
    name = module.removesuffix(".py").replace("/", ".")
    package, _, leaf = name.rpartition(".")
    forms = (f"from {name} import", f"import {name}", f"from {package} import {leaf}")
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if any(form in path.read_text() for form in forms)]
    mirror = ROOT / "tests" / Path(module).parent
    return [path.relative_to(ROOT).as_posix() for path in files], [mirror.relative_to(ROOT).as_posix()]


def judge(copy: Path, module: str, mutant: Mutant, seconds: float) -> Result:
    """Run the tests on a mutant in a copy of the repository."""
    path = copy / module
    path.write_text(mutate((ROOT / module).read_text(), mutant))
    try:
        return Result(module, mutant.line, mutant.fault, _find_killer(copy, module, seconds))
    finally:
        shutil.copyfile(ROOT / module, path)


def _find_killer(copy: Path, module: str, seconds: float) -> str | None:
    """Return the first test of a module that fails in a copy."""
    for targets in tests_of(module):
        there = [target for target in targets if (copy / target).exists()]
        if there and (found := _first_failure(copy, there, seconds)) is not None:
            return found
    return None


def _first_failure(copy: Path, targets: list[str], seconds: float) -> str | None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "pure"]
    command += ["--hypothesis-profile", "fast", "--no-header", "-rf", *targets]
    try:
        done = subprocess.run(
            command, cwd=copy, env=_environment(copy), capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end within {seconds:g} s"
    if done.returncode in {0, 5}:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else f"exit status {done.returncode}"


def _environment(copy: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(copy / "cache")}
    return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> int:
    """Judge the sample; print each survivor and the share of killed mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="*", default=MODULES)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of each run of tests")
    parser.add_argument("--least", type=float, default=0.85, help="share of killed mutants")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    sample = draw(asked.modules, asked.sample, asked.seed)
    drawn = [item for item in sample if not is_equivalent(*item)]
    with tempfile.TemporaryDirectory(prefix="ipnext-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(asked.processes):
            copies.put(
                _copy(Path(folder) / str(number), kernels=any(module.startswith("planner/") for module, _ in drawn))
            )

        def in_a_copy(work: Callable[..., Answer], *given: object) -> Answer:
            place = copies.get()
            try:
                return work(place, *given, asked.seconds)
            finally:
                copies.put(place)

        def work(item: tuple[str, Mutant]) -> Result:
            result = in_a_copy(judge, *item)
            if result.killed_by is None:
                print(f"survived: {result.module}:{result.line}: {result.fault}", flush=True)  # noqa: T201
            return result

        with ThreadPoolExecutor(asked.processes) as pool:
            modules = sorted({module for module, _ in drawn})
            for module, failed in zip(modules, pool.map(partial(in_a_copy, _find_killer), modules), strict=True):
                if failed is not None:
                    sys.exit(f"{module}: its tests fail without a fault: {failed}")
            results = list(pool.map(work, drawn))
    killed = sum(result.killed_by is not None for result in results)
    print(f"{killed} of {len(results)} killed, {len(sample) - len(drawn)} equivalent")  # noqa: T201
    if asked.json is not None:
        asked.json.write_text(json.dumps([result._asdict() for result in results], indent=1))
    return int(killed < asked.least * len(results))


def _copy(place: Path, *, kernels: bool) -> Path:
    """Copy what git tracks, and compile the planner's kernels there if its tests need them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    if kernels:
        subprocess.run([sys.executable, "-m", "planner.kernels"], cwd=place, env=_environment(place), check=True)
    return place


if __name__ == "__main__":
    sys.exit(main())
