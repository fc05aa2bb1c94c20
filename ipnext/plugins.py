"""Plug-ins of other distributions by entry points: validators and engines. A broken one is refused by its name.

The worker runs the validators, the API lists them: both need the same distributions installed.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

import structlog
from pydantic import PositiveInt, TypeAdapter, ValidationError

from ipnext import names
from ipnext.errors import InvalidInput, IPnextError
from ipnext.model.api.plugins import BUILT_IN_ENGINES, ValidatorView
from ipnext.model.echoes import cut_text
from ipnext.model.lifecycle.checks import BUILT_IN, BUILT_IN_VALIDATORS
from ipnext.model.registry.snapshot_files import ENGINE_FILES, OTHER_FILES, FileSet
from ipnext.model.validation_errors import first_line


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

    def files_of(self, engine: str) -> FileSet:
        """Return the files that snapshots of an engine may have.

        Engines without a set, or with a broken one, have OTHER_FILES.
        """
        return ENGINE_FILES.get(engine) or self._files.get(engine, OTHER_FILES)

    @cached_property
    def _files(self) -> Mapping[str, FileSet]:
        """Engine -> its set, by the entry points of the group `ipnext.snapshot_files`."""
        found = {point.name: _file_set(point) for point in _points(names.SNAPSHOT_FILES_GROUP)}
        return {engine: files for engine, files in found.items() if files is not None}

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


def _file_set(point: EntryPoint) -> FileSet | None:
    """Load a set of files: a mapping of patterns to numbers. None if it is none."""
    try:
        return MappingProxyType(TypeAdapter(dict[str, PositiveInt]).validate_python(dict(point.load())))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the code of others: whatever it raises refuses it, and nothing else
        reason = f"{type(error).__name__}: {error}"
        structlog.get_logger().error(
            "snapshot files refused", engine=point.name, source=source_of(point), reason=reason
        )
        return None


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
    source = source_of(point)
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


def source_of(point: EntryPoint) -> str:
    """Return the distribution of an entry point, with its version and value."""
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown distribution"
    return f"{distribution} ({point.value})"


def load_kind(point: EntryPoint, *, taken: Iterable[str], methods: Iterable[str], what: str) -> Any:
    """Return an object of the class that an entry point names; None if it can't be loaded, and the log has the reason.

    `taken` are names that it may not have, `methods` those that the object needs, `what` it is a kind of.
    """
    try:
        if point.name in taken:
            msg = f"the name {point.name!r} is taken"
            raise ValueError(msg)  # noqa: TRY301 - one way to refuse
        kind = point.load()()
        lacking = [name for name in methods if not callable(getattr(kind, name, None))]
        if lacking:
            msg = f"it has no {' and no '.join(lacking)}"
            raise TypeError(msg)  # noqa: TRY301
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the code of others: whatever it raises refuses it, and nothing else
        reason = f"{type(error).__name__}: {error}"
        structlog.get_logger().error(f"{what} kind refused", kind=point.name, source=point.value, reason=reason)
        return None
    return kind


@contextmanager
def contain_faults(name: str, method: str = "check") -> Iterator[None]:
    """Turn whatever a method of a plug-in raises into InvalidInput. Errors of IPnext pass.

    The text of a ValueError says why the settings are wrong; any other error is a fault of the plug-in `name`.
    """
    try:
        yield
    except IPnextError:
        raise
    except ValidationError as error:
        raise InvalidInput(cut_text(first_line(error))) from error
    except ValueError as error:
        raise InvalidInput(cut_text(str(error))) from error
    except (Exception, SystemExit) as error:
        msg = f"the {method} of {name!r} ended with {type(error).__name__}: {error}"
        raise InvalidInput(cut_text(msg)) from error
