"""A manifest with the throughput of profiles, in place of the declared one of parts with `profile: true`."""

from collections.abc import Mapping

from ipnext.errors import InvalidInput
from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.profile import AtTarget, LatencyTarget, PartThroughput, Profile, StoredProfile, at_target
from ipnext.model.throughput import FIELDS, TOKENS, Unit

Profiles = Mapping[tuple[str, str], StoredProfile]
"""(part, hardware kind) -> the newest applicable profile."""


def wants_profiles(manifest: ModelManifest) -> bool:
    """Return whether any part uses a measured throughput."""
    return any(option.profile for part in manifest.spec.parts for option in part.hardware)


def apply_profiles(manifest: ModelManifest, profiles: Profiles) -> ModelManifest:
    """Return the manifest with measured throughput for each option that requests it and has a profile.

    Others keep the declared number; an option with neither is left out, unless the part would have none.
    """
    if not wants_profiles(manifest):
        return manifest
    spec = manifest.spec
    parts = tuple(_part(part, profiles, spec.unit) for part in spec.parts)
    return manifest.model_copy(update={"spec": spec.model_copy(update={"parts": parts})})


def throughput_of(part: PartSpec, profile: Profile) -> AtTarget:
    """Return the throughput of a part's replica at the part's latency target."""
    return at_target(profile.steps, part.latency_target or LatencyTarget())


def throughputs(manifest: ModelManifest, profiles: Profiles) -> tuple[PartThroughput, ...]:
    """Return the throughput that plans use for each option of each part, and its source."""
    known, unit = apply_profiles(manifest, profiles), manifest.spec.unit
    found = []
    for part in known.spec.parts:
        for option in part.hardware:
            profile = profiles.get((part.name, option.kind)) if option.profile else None
            line = PartThroughput(part=part.name, hardware=option.kind, units=option.units, rate=option.rate, unit=unit)
            if profile is not None:
                met = throughput_of(part, profile).met
                line = line.model_copy(update={"snapshot": profile.snapshot, "met": met})
            found.append(line)
    return tuple(found)


def check_measured(manifest: ModelManifest, profiles: Profiles) -> None:
    """Refuse unknown throughput, and parts whose measurements miss their target. Raises InvalidInput."""
    for i, part in enumerate(manifest.spec.parts):
        for j, option in enumerate(part.hardware):
            if option.profile:
                field = f"spec.parts.{i}.hardware.{j}"
                _check(manifest, part, option, profiles.get((part.name, option.kind)), field)


def _check(
    manifest: ModelManifest, part: PartSpec, option: HardwareOption, profile: StoredProfile | None, field: str
) -> None:
    where = f"{field}: part {part.name!r} on {option.kind!r}"
    if profile is None:
        if option.rate is None:
            number = FIELDS[manifest.spec.unit]
            msg = (
                f"{where} has no profile yet and no number; allowed: a {number} beside profile: true, "
                "which holds until "
                f"`ipnext profile {manifest.name} --part {part.name} --hardware {option.kind}` has measured one"
            )
            raise InvalidInput(msg, field=field, value=option.kind, allowed=(number, "a measured profile"))
        return
    found = throughput_of(part, profile)
    if not found.met:
        seen = profile.steps[0]
        itl = "" if seen.itl_p99_ms is None else f", ITL {seen.itl_p99_ms:.4g} ms"
        msg = (
            f"{where} misses its latencyTarget ({part.latency_target}) at any load: at concurrency {seen.concurrency} "
            f"TTFT was {seen.ttft_p99_ms:.4g} ms{itl} (p99, snapshot {profile.snapshot}); allowed: a target above that"
        )
        raise InvalidInput(
            msg, field=f"{field.rpartition('.hardware')[0]}.latencyTarget", value=str(part.latency_target)
        )


def _part(part: PartSpec, profiles: Profiles, unit: Unit) -> PartSpec:
    options = [_option(part, option, profiles, unit) for option in part.hardware]
    known = tuple(option for option in options if option.rate is not None)
    return part.model_copy(update={"hardware": known or part.hardware})


def _option(part: PartSpec, option: HardwareOption, profiles: Profiles, unit: Unit) -> HardwareOption:
    profile = profiles.get((part.name, option.kind)) if option.profile else None
    if profile is None:
        return option
    rate = throughput_of(part, profile).rate(unit)
    field = "tokens_per_second" if unit == TOKENS else "qps"
    return option.model_copy(update={"qps": None, "tokens_per_second": None, field: rate}) if rate > 0 else option
