"""Checks of an apply in addition to the manifest's shape, and its field changes. Pure functions of plain values."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ipnext.artifacts.signing import MANIFEST_KEYS, check_keys
from ipnext.errors import Conflict, InvalidInput, SignatureInvalid, TooLarge
from ipnext.model.api.resources import FieldChange
from ipnext.model.echoes import PLACE_CHARACTERS, cut_text
from ipnext.model.fleet import FleetSpec, HardwareOption
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.split import SplitHardware
from ipnext.model.settings.engine import vllm_settings
from ipnext.model.settings.engine_allowances import EngineAllowances
from ipnext.model.value import WrittenValue, canonical_json
from ipnext.plugins import Plugins

MOST_MANIFEST_BYTES: Final = 2**19
"""Largest manifest, as it is stored. Lists of models, the page, planner and workers read it whole and many at once."""

_ABSENT = object()


def check_storable(manifest: WrittenValue) -> None:
    """Refuse free-form values that JSON or a database can't store: NaN, infinity, NUL, half a surrogate pair.

    Raises InvalidInput; TooLarge for a manifest of more than MOST_MANIFEST_BYTES.
    """
    try:
        text = canonical_json(manifest)
        size = len(text.encode())
    except ValueError as error:
        msg = f"the manifest holds a value that JSON can't carry: {error}"
        raise InvalidInput(msg) from error
    if "\\u0000" in text:
        msg = "the manifest holds a NUL character; take it out"
        raise InvalidInput(msg)
    if size > MOST_MANIFEST_BYTES:
        msg = f"the manifest has {size} bytes of JSON; allowed: {MOST_MANIFEST_BYTES}"
        raise TooLarge(msg)


def check_runs_no_code(manifest: ModelManifest, allowances: EngineAllowances) -> None:
    """Refuse arguments and variables of vLLM that are neither on the allow lists nor allowed here.

    Raises InvalidInput.
    """
    for i, part in enumerate(manifest.spec.parts):
        if part.engine != "vllm":
            continue
        try:
            allowances.check(vllm_settings(part.settings))
        except ValueError as error:
            msg = f"spec.parts.{i}.{error}"
            raise InvalidInput(msg, field=f"spec.parts.{i}.settings", value=part.settings) from error


def check_signers(manifest: ModelManifest) -> None:
    """Refuse invalid public keys. Raises InvalidInput."""
    policy = manifest.spec.validation.signers
    if policy is None:
        return
    try:
        check_keys(policy, MANIFEST_KEYS)
    except SignatureInvalid as error:
        raise InvalidInput(error.message, field=MANIFEST_KEYS) from error


def check_plugins(manifest: ModelManifest, plugins: Plugins) -> None:
    """Refuse engines that are not registered, and validators to skip that are unknown or required.

    Raises InvalidInput.
    """
    for i, part in enumerate(manifest.spec.parts):
        if part.engine not in plugins.engines:
            field, known = f"spec.parts.{i}.engine", plugins.engines
            msg = f"{field}: {part.engine!r} is not registered; allowed: {', '.join(known)}"
            raise InvalidInput(msg, field=field, value=part.engine, allowed=known)
    skip = manifest.spec.validation.skip
    if not skip:
        return
    skippable = tuple(view.name for view in plugins.validator_views if view.skippable)
    for name in skip:
        if name not in skippable:
            field = "spec.validation.skip"
            msg = f"{field}: {name!r} {_no_skip(name, plugins)}; allowed: {', '.join(skippable)}"
            raise InvalidInput(msg, field=field, value=name, allowed=skippable)


def _no_skip(name: str, plugins: Plugins) -> str:
    found = [view for view in plugins.validator_views if view.name == name]
    if not found:
        return "is no validator"
    return "always runs" if found[0].required else f"was refused ({found[0].reason})"


def check_against_fleet(manifest: ModelManifest, fleet: FleetSpec) -> None:
    """Refuse demand in regions, and hardware kinds, that the fleet does not have. Raises InvalidInput.

    Also refuses demand that no region reaches within the model's latency tolerance: no plan could ever serve it; and
    replicas of fewer units than the fleet's `leastUnits`.
    """
    for i, item in enumerate(manifest.spec.demand):
        _check_known(f"spec.demand.{i}.region", item.region, fleet.regions, "region")
        nearest = min(fleet.rtt_ms[fleet.regions.index(item.region)])
        if item.amount > 0 and nearest > manifest.spec.latency_tolerance_ms:
            given = manifest.spec.latency_tolerance_ms
            msg = (
                f"spec.latencyToleranceMs: {given:g} reaches no region from {item.region}; allowed: "
                f"at least {nearest:g}"
            )
            raise InvalidInput(msg, field="spec.latencyToleranceMs", value=given, allowed=(f"at least {nearest:g}",))
    for i, part in enumerate(manifest.spec.parts):
        for j, option in enumerate(part.hardware):
            _check_known(f"spec.parts.{i}.hardware.{j}.kind", option.kind, fleet.hardware, "hardware kind")
            _check_units(f"spec.parts.{i}.hardware.{j}.units", option, fleet)
    for i, split in enumerate(manifest.spec.split.parts if manifest.spec.split else ()):
        for j, asked in enumerate(split.hardware):
            kind = asked if isinstance(asked, str) else asked.kind
            _check_known(f"spec.split.parts.{i}.hardware.{j}", kind, fleet.hardware, "hardware kind")
            if not isinstance(asked, str):
                _check_units(f"spec.split.parts.{i}.hardware.{j}.units", asked, fleet)


def check_fleet_serves(fleet: FleetSpec, manifests: tuple[ModelManifest, ...]) -> None:
    """Refuse a fleet without regions or hardware that an applied model names. Raises Conflict that names the models."""
    for manifest in manifests:
        try:
            check_against_fleet(manifest, fleet)
        except InvalidInput as error:
            msg = f"model {manifest.name!r} still needs it: {error.message}; change or delete the model first"
            raise Conflict(msg) from error


def field_changes(before: WrittenValue | None, after: WrittenValue) -> tuple[FieldChange, ...]:
    """Return the fields in which two manifests differ, by path. Lists are compared item by item."""
    old = {} if before is None else before.model_dump(mode="json", by_alias=True)
    new = after.model_dump(mode="json", by_alias=True)
    return tuple(
        FieldChange(field=path, before=None if a is _ABSENT else a, after=None if b is _ABSENT else b)
        for path, a, b in _differences("", old, new)
    )


def _check_units(field: str, option: HardwareOption | SplitHardware, fleet: FleetSpec) -> None:
    """Refuse fewer units a replica than the fleet allows: hosts would run out before the supply does."""
    least = fleet.least_units.get(option.kind, 0.0)
    if option.units < least:
        allowed = f"at least {least:g}"
        msg = (
            f"{field}: {option.units:g} units of {option.kind} a replica are below the fleet's leastUnits; "
            f"allowed: {allowed}"
        )
        raise InvalidInput(msg, field=field, value=option.units, allowed=(allowed,))


def _check_known(field: str, name: str, allowed: tuple[str, ...], noun: str) -> None:
    if name not in allowed:
        msg = f"{field}: the fleet has no {noun} {name!r}; allowed: {', '.join(allowed)}"
        raise InvalidInput(msg, field=field, value=name, allowed=allowed)


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(_join(path, key), old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(_join(path, str(i)), a, b)
    elif old != new:
        yield path, old, new


def _join(path: str, step: str) -> str:
    """Return the path of a member. Cut: each member has its own, with all names before it."""
    step = cut_text(step, PLACE_CHARACTERS)
    return f"{path}.{step}" if path else step
