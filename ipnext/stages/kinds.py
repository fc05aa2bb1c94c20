"""Stages of this environment: entry points of the group `ipnext.stages`, and the orders that name them.

The API checks manifests with them, workers register and compose them: both need the same distributions installed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import structlog
from pydantic import TypeAdapter, ValidationError

from ipnext import names
from ipnext.errors import InvalidInput, IPnextError
from ipnext.model.api.plugins import StageView
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.stage_order import ComposedStage, StageCall
from ipnext.model.lifecycle.checks import BUILT_IN
from ipnext.model.lifecycle.stages import DEFAULT_STAGES, OPTIONAL_STAGES, SAFETY_CRITICAL
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.stages import PlatformStageEntry, StageEntry
from ipnext.model.value import Name
from ipnext.plugins import contain_faults, source_of
from ipnext.stages.composition import OF_PLATFORM, PlacedStage, check_entries, compose
from ipnext.stages.optional import check_settings, find_misfit
from ipnext.stages.port import Stage

_NAME: Final = TypeAdapter(Name)
BUILT_IN_NAMES: Final = tuple(dict.fromkeys(name for order in DEFAULT_STAGES.values() for name in order))


@dataclass(frozen=True, slots=True)
class FoundStage:
    """An entry point; `stage` is None if it was refused, for `reason`."""

    name: str
    source: str
    stage: Stage | None = None
    reason: str = ""


class StageKinds:
    """The stages of this environment, each loaded once, at the first use of any. `platform`: entries for all models."""

    def __init__(self, platform: Sequence[PlatformStageEntry] = ()) -> None:
        """Raise InvalidInput if the platform's entries leave out what must stay, or do not fit each other."""
        self._platform = tuple(platform)
        check_entries(self._platform, (), optimizes=False)

    @cached_property
    def plugins(self) -> tuple[FoundStage, ...]:
        """Entry points in the order of their names, refused ones included."""
        points = sorted(entry_points(group=names.STAGE_GROUP), key=lambda point: (point.name, point.value))
        return tuple(_load_all(points))

    @cached_property
    def by_name(self) -> Mapping[str, FoundStage]:
        """Name -> a stage that can be used."""
        return {each.name: each for each in self.plugins if each.stage is not None}

    def log_refused(self) -> None:
        """Log each entry point that was refused, and each entry of the platform that no change can go through.

        A worker calls it; the API lists the entry points.
        """
        log = structlog.get_logger()
        for each in self.plugins:
            if each.stage is None:
                log.error("stage refused", name=each.name, source=each.source, reason=each.reason)
        for index, entry in enumerate(self._platform):
            fault = self._find_fault(f"{OF_PLATFORM}.{index}", entry)
            if fault:
                log.error("stage of the platform's setting refused", stage=entry.stage, reason=fault)

    @property
    def activities(self) -> tuple[Callable[..., Any], ...]:
        """What the worker of lifecycles registers."""
        return tuple(stage.target for stage in self._registered() if stage.runs == "activity")

    @property
    def workflows(self) -> tuple[type, ...]:
        """The same for workflows."""
        return tuple(stage.target for stage in self._registered() if stage.runs == "workflow")

    def check(self, spec: ModelSpec) -> None:
        """Check the entries of a manifest, and the settings that it gives. Raises InvalidInput with the place."""
        check_entries(self._platform, spec.lifecycle, optimizes=_optimizes(spec))
        for index, entry in enumerate(spec.lifecycle):
            if entry.stage is not None:
                self._check_stage(f"spec.lifecycle.{index}", entry.stage, entry)
                _check_fits(f"spec.lifecycle.{index}.stage", entry.stage, spec)

    def composed(self, kind: ChangeKind, spec: ModelSpec) -> tuple[ComposedStage, ...] | None:
        """Return the stages of a change in their order, with how each is run; None for the default order.

        Raises InvalidInput if the entries of the platform and of the manifest do not fit each other.
        """
        order = compose(kind, self._platform, spec.lifecycle, optimizes=_optimizes(spec))
        order = tuple(stage for stage in order if not find_misfit(stage.name, spec))
        if tuple(stage.name for stage in order) == DEFAULT_STAGES[kind]:
            return None
        return tuple(self._composed(stage) for stage in order)

    @property
    def views(self) -> tuple[StageView, ...]:
        """The built-in stages in their order, the optional ones, then those of other distributions."""
        built_in = (*map(_view_built_in, BUILT_IN_NAMES), *map(self._view_optional, OPTIONAL_STAGES))
        return (*built_in, *map(self._view, self.plugins))

    def _entries_of(self, stage: str) -> Sequence[PlatformStageEntry]:
        return [entry for entry in self._platform if entry.stage == stage]

    def _view_optional(self, name: str) -> StageView:
        return StageView(name=name, source=BUILT_IN, **_view_entries(self._entries_of(name)))

    def _registered(self) -> Iterator[Stage]:
        """Yield the stages that lifecycle workers run."""
        for each in self.by_name.values():
            if each.stage is not None and each.stage.queue is None:
                yield each.stage

    def _composed(self, placed: PlacedStage) -> ComposedStage:
        if placed.entry is None:
            return ComposedStage(name=placed.name)
        if placed.name in OPTIONAL_STAGES:
            return ComposedStage(name=placed.name, settings=placed.entry.settings)
        known = self.by_name.get(placed.name)
        if known is None or known.stage is None:
            return ComposedStage(name=placed.name, lacking=f"{placed.place}: {self._why_not(placed.name)}")
        return ComposedStage(name=placed.name, call=_call_of(known.stage, known.source, placed.entry.settings))

    def _find_fault(self, place: str, entry: StageEntry) -> str:
        try:
            if entry.stage is not None:
                self._check_stage(place, entry.stage, entry)
        except IPnextError as error:
            return error.message
        return ""

    def _check_stage(self, place: str, name: str, entry: StageEntry) -> None:
        known = self.by_name.get(name)
        if name in OPTIONAL_STAGES:
            _check_settings(f"{place}.settings", check_settings, entry.settings)
            return
        if known is None or known.stage is None:
            field, allowed = f"{place}.stage", (*OPTIONAL_STAGES, *self.by_name)
            msg = f"{field}: {self._why_not(name)}; allowed: {', '.join(allowed)}"
            raise InvalidInput(msg, field=field, value=name, allowed=allowed)
        _check_settings(f"{place}.settings", contain_faults(name)(known.stage.check), entry.settings)

    def _why_not(self, name: str) -> str:
        refused = next((each for each in self.plugins if each.name == name), None)
        if refused is not None:
            return f"the stage {name!r} of {refused.source} was refused: {refused.reason}"
        if name in BUILT_IN_NAMES:
            return f"{name!r} is built in"
        return f"no stage {name!r} is installed here"

    def _view(self, each: FoundStage) -> StageView:
        if each.stage is None:
            return StageView(name=each.name, source=each.source, state="refused", reason=each.reason)
        entries = self._entries_of(each.name)
        call = _call_of(each.stage, each.source, {})
        return StageView(
            name=each.name,
            source=each.source,
            **_view_entries(entries),
            runs=call.runs,
            queue=call.queue or names.LIFECYCLE_QUEUE,
            schedule_to_close_seconds=call.schedule_to_close_seconds,
            start_to_close_seconds=call.start_to_close_seconds,
            heartbeat_seconds=call.heartbeat_seconds,
            attempts=call.attempts,
        )


def _view_entries(entries: Sequence[PlatformStageEntry]) -> dict[str, Any]:
    """Return the fields of a view that follow from the platform's entries."""
    return {
        "changes": tuple(ChangeKind(kind) for entry in entries for kind in entry.changes),
        "may_be_left_out": not any(entry.required for entry in entries),
    }


def _view_built_in(name: str) -> StageView:
    return StageView(
        name=name,
        source=BUILT_IN,
        changes=tuple(kind for kind in ChangeKind if name in DEFAULT_STAGES[kind]),
        may_be_left_out=name not in SAFETY_CRITICAL,
    )


def _call_of(stage: Stage, source: str, settings: Mapping[str, Any]) -> StageCall:
    return StageCall(
        source=source,
        runs=stage.runs,
        queue=stage.queue,
        schedule_to_close_seconds=stage.schedule_to_close.total_seconds(),
        start_to_close_seconds=None if stage.start_to_close is None else stage.start_to_close.total_seconds(),
        heartbeat_seconds=None if stage.heartbeat is None else stage.heartbeat.total_seconds(),
        attempts=stage.attempts,
        settings=settings,
    )


def _check_fits(field: str, name: str, spec: ModelSpec) -> None:
    if misfit := find_misfit(name, spec):
        msg = f"{field}: {misfit}"
        raise InvalidInput(msg, field=field, value=name)


def _check_settings(place: str, check: Callable[[Mapping[str, Any]], None], settings: Mapping[str, Any]) -> None:
    try:
        check(settings)
    except InvalidInput as error:
        field = f"{place}.{error.field}" if error.field else place
        msg = f"{place}: {error.message}"
        raise InvalidInput(msg, field=field, value=error.value, allowed=error.allowed) from error


def _load_all(points: Iterable[EntryPoint]) -> Iterator[FoundStage]:
    taken = dict.fromkeys((*BUILT_IN_NAMES, *OPTIONAL_STAGES), BUILT_IN)
    for point in points:
        found = _load(point)
        if found.stage is not None and found.name in taken:
            reason = f"the name {found.name!r} is taken by {taken[found.name]}; choose another one"
            yield FoundStage(found.name, found.source, reason=reason)
            continue
        if found.stage is not None:
            taken[found.name] = found.source
        yield found


def _load(point: EntryPoint) -> FoundStage:
    source = source_of(point)
    try:
        stage = point.load()
        fault = _find_fault(stage)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the code of others: whatever it raises refuses it, and nothing else
        return FoundStage(point.name, source, reason=f"{type(error).__name__}: {error}")
    if fault:
        return FoundStage(point.name, source, reason=fault)
    return FoundStage(stage.name, source, stage)


def _find_fault(stage: Any) -> str:
    if not isinstance(stage, Stage):
        return f"it is {type(stage).__name__}; needed: ipnext.stages.port.Stage"
    try:
        _NAME.validate_python(stage.name)
    except ValidationError:
        return f"the name {stage.name!r} is not of lower case letters, digits and dashes"
    return stage.find_fault()


def _optimizes(spec: ModelSpec) -> bool:
    """Check whether a model needs the stage `optimization`: it is cut, or has steps that derive what serves."""
    return spec.split is not None or bool(spec.optimization)
