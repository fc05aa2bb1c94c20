"""Plug-ins of other distributions by entry points: validators and engines. A broken one is refused by its name.

The worker runs the validators, the API lists them: both need the same distributions installed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ipnext import names
from ipnext.model.api.plugins import BUILT_IN, BUILT_IN_ENGINES, BUILT_IN_VALIDATORS, ValidatorView


@dataclass(frozen=True, slots=True)
class FoundValidator:
    """A plug-in with its description; `value` is None if it was refused."""

    view: ValidatorView
    value: Any = None


class Plugins:
    """The plug-ins of this environment, each loaded once, at its first use."""

    @cached_property
    def engines(self) -> tuple[str, ...]:
        """Names that a manifest may give as `engine`; entry points of the group `ipnext.engines` are not loaded."""
        return tuple(sorted({*BUILT_IN_ENGINES, *(point.name for point in _points(names.ENGINE_GROUP))}))

    @cached_property
    def validators(self) -> tuple[FoundValidator, ...]:
        """Entry points of the group `ipnext.validators`, in the order of their names, refused ones included."""
        return tuple(_validators(_points(names.VALIDATOR_GROUP)))

    @property
    def validator_views(self) -> tuple[ValidatorView, ...]:
        """The built-in validators in the order in which they run, then the plug-ins."""
        own = (ValidatorView(name=n, source=BUILT_IN, required=required) for n, required in BUILT_IN_VALIDATORS.items())
        return (*own, *(found.view for found in self.validators))


def _points(group: str) -> Iterable[EntryPoint]:
    return sorted(entry_points(group=group), key=lambda point: (point.name, point.value))


def _validators(points: Iterable[EntryPoint]) -> Iterator[FoundValidator]:
    sources = dict.fromkeys(BUILT_IN_VALIDATORS, BUILT_IN)
    for point in points:
        found = _validator(point)
        name, source = found.view.name, found.view.source
        if found.value is not None and name in sources:
            yield _refuse(name, source, f"the name {name!r} is taken by {sources[name]}; choose another one")
            continue
        if found.value is not None:
            sources[name] = source
        yield found


def _validator(point: EntryPoint) -> FoundValidator:
    source = _source(point)
    try:
        value = point.load()
        name, required, check = value.name, value.required, value.check
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the code of others: whatever it raises refuses it, and nothing else
        return _refuse(point.name, source, f"{type(error).__name__}: {error}")
    if not isinstance(name, str) or not name or not isinstance(required, bool) or not callable(check):
        reason = "a validator has name (text), required (true or false) and check (called with a candidate)"
        return _refuse(point.name, source, reason)
    return FoundValidator(ValidatorView(name=name, source=source, required=required), value)


def _refuse(name: str, source: str, reason: str) -> FoundValidator:
    return FoundValidator(ValidatorView(name=name, source=source, state="refused", reason=reason))


def _source(point: EntryPoint) -> str:
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown distribution"
    return f"{distribution} ({point.value})"
