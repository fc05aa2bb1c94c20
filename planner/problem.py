"""Reads problem.json, plan.json and transition.json strictly, and checks that a problem's names agree.

Called by the command, the planning activity and tests. Everything that is wrong becomes one InvalidInput that names the
field, its value and what is allowed.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ipnext.errors import InvalidInput
from ipnext.model.plan import CurrentState, ModelProblem, PartProblem, Plan, Problem
from ipnext.model.rollout import FleetState, Transition
from ipnext.model.value import Value

LARGEST_FIGURE = 1e12
"""No figure of a problem may be larger: beyond it, sums lose the digits that the rules are checked to."""

V = TypeVar("V", bound=Value)


def read_problem(path: str | Path) -> Problem:
    """The valid problem in a problem.json file. Raises InvalidInput."""
    problem = read_value(path, Problem)
    validate(problem)
    return problem


def read_plan(path: str | Path) -> Plan:
    """The plan in a plan.json file; whether it is valid is `planner.solution.check`'s to say. Raises InvalidInput."""
    return read_value(path, Plan)


def read_transition(path: str | Path) -> Transition:
    """The transition in a transition.json file. Raises InvalidInput."""
    return read_value(path, Transition)


def read_state(path: str | Path) -> FleetState:
    """Replicas and traffic by generation, from a file. Raises InvalidInput."""
    return read_value(path, FleetState)


def read_value(path: str | Path, kind: type[V]) -> V:
    """A value of `kind` from a JSON file: no NaN, no name twice in one object, no unknown field. Raises InvalidInput."""
    text = _text(Path(path))
    try:
        json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    except RecursionError:
        msg = f"{path} is nested too deeply"
        raise InvalidInput(msg, field="file", value=str(path)) from None
    except ValueError as error:
        msg = f"{path} is not JSON: {error}"
        raise InvalidInput(msg, field="file", value=str(path), allowed=["JSON without NaN or Infinity"]) from None
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _refused(error.errors()[0], kind) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}"
        raise InvalidInput(msg, field="file", value=str(path), allowed=["a readable JSON file"]) from None
    except UnicodeDecodeError:
        msg = f"{path} is not UTF-8 text"
        raise InvalidInput(msg, field="file", value=str(path), allowed=["a readable JSON file"]) from None


def _refuse_constant(constant: str) -> NoReturn:
    msg = f"{constant} is no number here"
    raise ValueError(msg)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        msg = f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object"
        raise ValueError(msg)
    return dict(pairs)


def _refused(detail: ErrorDetails, kind: type[Value]) -> InvalidInput:
    """One pydantic error as our own: the field as a path, the value given, what is allowed."""
    field = _path(detail["loc"]) or "file"
    given = detail["input"]
    context = detail.get("ctx", {})
    allowed: Sequence[str] = ()
    if detail["type"] == "extra_forbidden":
        allowed = _fields_beside(kind, detail["loc"])
    elif "expected" in context:
        allowed = [str(context["expected"])]
    shown = "" if detail["type"] == "missing" or isinstance(given, dict | list) else f" (given: {given!r})"
    said = {"extra_forbidden": "unknown field", "missing": "required, but absent"}.get(detail["type"], detail["msg"])
    tail = f"; allowed: {', '.join(allowed)}" if allowed else ""
    return InvalidInput(f"{field}: {said}{shown}{tail}", field=field, value=given, allowed=allowed)


def _path(location: Sequence[str | int]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location).lstrip(".")


def _fields_beside(kind: type[Value], location: Sequence[str | int]) -> list[str]:
    """Names of the fields of the object in which an unknown one stands."""
    here: Any = kind
    for key in location[:-1]:
        if isinstance(key, str):
            fields = {info.alias or name: info.annotation for name, info in here.model_fields.items()}
            here = fields[key]
        else:
            here = here.__args__[0]
    return [info.alias or name for name, info in here.model_fields.items()]


def validate(problem: Problem) -> None:
    """Raises InvalidInput where names, shapes or figures of the problem disagree.

    An owner that `owners` does not list has no limit. A model that no region reaches within its tolerance is no error:
    its demand is left unmet.
    """
    _once("regions", problem.regions)
    _once("hardware", problem.hardware)
    _check_figures(problem)
    _check_rtt(problem)
    _check_supply(problem)
    _once("owners", [item.owner for item in problem.owners])
    _once("models", [item.model for item in problem.models])
    for index, model in enumerate(problem.models):
        _check_model(f"models[{index}]", model, problem)
    _check_current(problem.current, problem)


def _once(field: str, names: Sequence[str]) -> None:
    """Raises where a name is empty or stands twice."""
    seen: set[str] = set()
    for name in names:
        if not name:
            msg = f"{field}: a name is empty"
            raise InvalidInput(msg, field=field, value=name, allowed=["a name that is not empty"])
        if name in seen:
            msg = f"{field}: {name!r} stands twice; allowed: each name once"
            raise InvalidInput(msg, field=field, value=name, allowed=["each name once"])
        seen.add(name)


def _known(field: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        listed = sorted(known)
        msg = f"{field}: unknown name {name!r}; known: {', '.join(listed)}"
        raise InvalidInput(msg, field=field, value=name, allowed=listed)


def _check_figures(problem: Problem) -> None:
    for field, figure in _figures(problem.model_dump(by_alias=True), ""):
        if abs(figure) > LARGEST_FIGURE:
            msg = f"{field}: {figure:g} is too large; allowed: at most {LARGEST_FIGURE:g}"
            raise InvalidInput(msg, field=field, value=figure, allowed=[f"at most {LARGEST_FIGURE:g}"])


def _figures(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every number below `value` with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _figures(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _figures(item, f"{path}[{index}]")
    elif isinstance(value, int | float):
        yield path, value


def _check_rtt(problem: Problem) -> None:
    n = len(problem.regions)
    if len(problem.rtt_ms) != n or any(len(row) != n for row in problem.rtt_ms):
        shape = [len(row) for row in problem.rtt_ms]
        msg = f"rtt_ms: must be {n} rows of {n} numbers, one for each region (given: rows of {shape})"
        raise InvalidInput(msg, field="rtt_ms", value=shape, allowed=[f"{n} x {n}"])
    for s, row in enumerate(problem.rtt_ms):
        for r, ms in enumerate(row):
            if ms < 0:
                field = f"rtt_ms[{s}][{r}]"
                msg = f"{field}: {ms} is negative; allowed: 0 or more"
                raise InvalidInput(msg, field=field, value=ms, allowed=[">= 0"])


def _check_supply(problem: Problem) -> None:
    for index, item in enumerate(problem.supply):
        _known(f"supply[{index}].region", item.region, problem.regions)
        _known(f"supply[{index}].hardware", item.hardware, problem.hardware)
    _once("supply", [f"{item.region}/{item.hardware}" for item in problem.supply])


def _check_model(field: str, model: ModelProblem, problem: Problem) -> None:
    _once(f"{field}.model", [model.model])
    for index, demand in enumerate(model.demand):
        _known(f"{field}.demand[{index}].region", demand.region, problem.regions)
    _once(f"{field}.demand", [demand.region for demand in model.demand])
    _once(f"{field}.parts", [part.part for part in model.parts])
    for index, part in enumerate(model.parts):
        _check_part(f"{field}.parts[{index}]", part, problem)


def _check_part(field: str, part: PartProblem, problem: Problem) -> None:
    for index, option in enumerate(part.options):
        _known(f"{field}.options[{index}].hardware", option.hardware, problem.hardware)
    _once(f"{field}.options", [option.hardware for option in part.options])


def _check_current(current: CurrentState, problem: Problem) -> None:
    parts = {model.model: [part.part for part in model.parts] for model in problem.models}
    for index, item in enumerate(current.replicas):
        field = f"current.replicas[{index}]"
        _known(f"{field}.model", item.model, parts)
        _known(f"{field}.part", item.part, parts[item.model])
        _known(f"{field}.region", item.region, problem.regions)
        _known(f"{field}.hardware", item.hardware, problem.hardware)
    _once("current.replicas", [f"{r.model}/{r.part}/{r.region}/{r.hardware}" for r in current.replicas])
    _check_current_traffic(current, problem, parts)


def _check_current_traffic(current: CurrentState, problem: Problem, models: Collection[str]) -> None:
    sums: dict[tuple[str, str], float] = {}
    for index, share in enumerate(current.traffic):
        field = f"current.traffic[{index}]"
        _known(f"{field}.model", share.model, models)
        _known(f"{field}.from", share.origin, problem.regions)
        _known(f"{field}.to", share.to, problem.regions)
        key = (share.model, share.origin)
        sums[key] = sums.get(key, 0.0) + share.fraction
        if sums[key] > 1 + 1e-6:
            msg = f"{field}.fraction: the shares of {share.model} from {share.origin} sum to {sums[key]:g}; allowed: at most 1"
            raise InvalidInput(msg, field=f"{field}.fraction", value=sums[key], allowed=["a sum of at most 1"])
    _once("current.traffic", [f"{t.model}/{t.origin}/{t.to}" for t in current.traffic])
