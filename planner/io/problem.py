"""Reads problem.json, plan.json and transition.json, and checks that a problem's names and figures agree.

Called by the command, the planning activity and tests. Every fault becomes one InvalidInput of one line that names the
field, its value and the allowed values. `planner.io.json_reader` reads the files, `planner.io.scalar_checks` checks
single figures and names.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NoReturn, TypeVar

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import CurrentState, ModelProblem, Plan, Problem
from ipnext.model.planning.transition import FleetState, Transition
from ipnext.model.value import Value
from planner.io.json_reader import format_value, read_value, short
from planner.io.scalar_checks import check_leaves

NAMES_LISTED = 10
"""Known names that a message lists at most."""

V = TypeVar("V", bound=Value)


def read_problem(path: str | Path) -> Problem:
    """Read a valid problem from problem.json.

    Raises InvalidInput, also for -0.0 and for a supply of 0 units everywhere.
    """
    problem = read_value(path, Problem)
    check_leaves(problem, negative_zero=False)
    _check(problem)
    if not any(item.units > 0 for item in problem.supply):
        _refuse("supply", "every entry has 0 units", ["units above 0 in some region"], 0.0)
    return problem


def read_plan(path: str | Path) -> Plan:
    """Read the plan in a plan.json file; `planner.verify.plan_checker.check` validates it. Raises InvalidInput."""
    return _read(path, Plan)


def read_transition(path: str | Path) -> Transition:
    """Read the transition in a transition.json file. Raises InvalidInput."""
    return _read(path, Transition)


def read_state(path: str | Path) -> FleetState:
    """Read replicas and traffic by generation from a file. Raises InvalidInput."""
    return _read(path, FleetState)


def _read(path: str | Path, kind: type[V]) -> V:
    value = read_value(path, kind)
    check_leaves(value)
    return value


def validate(problem: Problem) -> None:
    """Raise InvalidInput if names, shapes or figures of the problem disagree, or if it requests the impossible.

    Impossible are a fleet without a supply entry, a model without demand, and demand that no region reaches within the
    model's tolerance. Entries of 0 units are a possible residual of other models: valid here, refused in a file. No
    models at all is a valid problem. An owner that `owners` does not list has no limit.
    """
    check_leaves(problem)
    _check(problem)


def _check(problem: Problem) -> None:
    _once("regions", problem.regions)
    _once("hardware", problem.hardware)
    _check_rtt(problem)
    _check_supply(problem)
    _once("owners", [item.owner for item in problem.owners])
    _once("models", [item.model for item in problem.models])
    regions, hardware = frozenset(problem.regions), frozenset(problem.hardware)
    nearest = {region: min(row) for region, row in zip(problem.regions, problem.rtt_ms, strict=True)}
    for index, model in enumerate(problem.models):
        field = f"models[{index}]"
        _check_names(field, model, regions, hardware)
        _check_demand(field, model, nearest)
    _check_current(problem.current, problem)


def _refuse(field: str, said: str, allowed: Sequence[str], value: object) -> NoReturn:
    msg = f"{field}: {said}; allowed: {', '.join(allowed)}"
    raise InvalidInput(msg, field=field, value=value, allowed=allowed)


def _once(field: str, keys: Sequence[Hashable]) -> None:
    """Raise if a name, or the combined names of a row, is duplicated."""
    if len(set(keys)) == len(keys):
        return
    seen: set[Hashable] = set()
    for key in keys:
        if key in seen:
            name = "/".join(key) if isinstance(key, tuple) else key
            _refuse(field, f"{format_value(name)} stands twice", ["each name once"], name)
        seen.add(key)


def _check_known(field: str, inner: str, names: Iterable[str], known: AbstractSet[str] | Mapping[str, object]) -> None:
    """Raise for the first of `names`, the field `inner` of the items of `field`, that is not known."""
    for index, name in enumerate(names):
        if name not in known:
            _refuse_unknown(f"{field}[{index}].{inner}", name, known)


def _refuse_unknown(field: str, name: str, known: Collection[str]) -> NoReturn:
    listed = sorted(known)[:NAMES_LISTED]
    more = f" and {len(known) - len(listed)} more" if len(known) > len(listed) else ""
    msg = f"{field}: unknown name {format_value(name)}; known: {', '.join(map(short, listed))}{more}"
    raise InvalidInput(msg, field=field, value=name, allowed=listed)


def _check_rtt(problem: Problem) -> None:
    n = len(problem.regions)
    if len(problem.rtt_ms) != n or any(len(row) != n for row in problem.rtt_ms):
        shape = [len(row) for row in problem.rtt_ms]
        msg = f"rtt_ms: must be {n} rows of {n} numbers, one for each region (given: rows of {format_value(shape)})"
        raise InvalidInput(msg, field="rtt_ms", value=shape, allowed=[f"{n} x {n}"])
    for s, row in enumerate(problem.rtt_ms):
        for r, ms in enumerate(row):
            if ms < 0:
                _refuse(f"rtt_ms[{s}][{r}]", f"{ms} is negative", ["0 or more"], ms)


def _check_supply(problem: Problem) -> None:
    _check_known("supply", "region", [item.region for item in problem.supply], frozenset(problem.regions))
    _check_known("supply", "hardware", [item.hardware for item in problem.supply], frozenset(problem.hardware))
    _once("supply", [(item.region, item.hardware) for item in problem.supply])
    if not problem.supply:
        _refuse("supply", "the list is empty", ["units above 0 in some region"], ())


def _check_names(field: str, model: ModelProblem, regions: AbstractSet[str], hardware: AbstractSet[str]) -> None:
    demanding = [demand.region for demand in model.demand]
    _check_known(f"{field}.demand", "region", demanding, regions)
    _once(f"{field}.demand", demanding)
    _once(f"{field}.parts", [part.part for part in model.parts])
    for index, part in enumerate(model.parts):
        kinds = [option.hardware for option in part.options]
        _check_known(f"{field}.parts[{index}].options", "hardware", kinds, hardware)
        _once(f"{field}.parts[{index}].options", kinds)


def _check_demand(field: str, model: ModelProblem, nearest: Mapping[str, float]) -> None:
    """Check that there is demand, and that each is reached.

    `nearest` is ms from a region's users to their nearest region.
    """
    asking = [demand.region for demand in model.demand if demand.qps > 0]
    if not asking:
        given = "every entry has 0 qps" if model.demand else "the list is empty"
        _refuse(f"{field}.demand", given, ["qps above 0 from some region"], 0.0)
    farthest = max(asking, key=nearest.__getitem__)
    if nearest[farthest] > model.latency_tolerance_ms:
        said = f"{model.latency_tolerance_ms} reaches no region from the users of {format_value(farthest)}"
        _refuse(f"{field}.latency_tolerance_ms", said, [f"at least {nearest[farthest]}"], model.latency_tolerance_ms)


def _check_current(current: CurrentState, problem: Problem) -> None:
    parts = {model.model: frozenset(part.part for part in model.parts) for model in problem.models}
    regions, hardware = frozenset(problem.regions), frozenset(problem.hardware)
    replicas, traffic = current.replicas, current.traffic
    _check_known("current.replicas", "model", [item.model for item in replicas], parts)
    for index, item in enumerate(replicas):
        if item.part not in parts[item.model]:
            _refuse_unknown(f"current.replicas[{index}].part", item.part, parts[item.model])
    _check_known("current.replicas", "region", [item.region for item in replicas], regions)
    _check_known("current.replicas", "hardware", [item.hardware for item in replicas], hardware)
    _once("current.replicas", [(r.model, r.part, r.region, r.hardware) for r in replicas])
    _check_known("current.traffic", "model", [share.model for share in traffic], parts)
    _check_known("current.traffic", "from", [share.origin for share in traffic], regions)
    _check_known("current.traffic", "to", [share.to for share in traffic], regions)
    _check_sums(current)
    _once("current.traffic", [(t.model, t.origin, t.to) for t in traffic])


def _check_sums(current: CurrentState) -> None:
    sums: dict[tuple[str, str], float] = {}
    for index, share in enumerate(current.traffic):
        key = (share.model, share.origin)
        total = sums[key] = sums.get(key, 0.0) + share.fraction
        if total > 1 + 1e-6:
            said = f"the shares of {format_value(share.model)} from {format_value(share.origin)} sum to {total:g}"
            _refuse(f"current.traffic[{index}].fraction", said, ["a sum of at most 1"], total)
