"""Validator of memory: each part fits a replica on at least one hardware kind of the manifest, by its manifests alone.

The sizes are those by which hosts refuse a load (`ipnext.model.deployment.footprint`).
"""

from collections.abc import Iterator, Mapping

from activities.state.memory_fit import MEMORY, Need, judge_part, need_of
from activities.validation.validator import Candidate, skip_check
from ipnext.model.api.plugins import BUILT_IN_ENGINES
from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.deployment.footprint import PROCESS_BYTES, needed_bytes, weight_bytes
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.manifest.optimization import part_of
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.settings.engine import vllm_settings


def check_memory(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield one result for each part with hosts; its evidence has needed and available bytes by hardware kind.

    A part is refused if it fits none of its kinds. What the optimization or a split makes is not known yet: after steps
    for single hardware kinds, the optimization judges their part.
    """
    for part in candidate.manifest.spec.hosted_parts:
        if part.name not in candidate.snapshots:
            continue
        reason = _find_unknown(candidate, part)
        if reason is None:
            yield judge_part(part, _needs(candidate, part), candidate.memory_bytes)
        else:
            yield skip_check(MEMORY, part.name, reason)


def _find_unknown(candidate: Candidate, part: PartSpec) -> str | None:
    """Return why the memory of a part can't be told from its snapshot; None if it can."""
    spec = candidate.manifest.spec
    engines = {each.name: each.engine for each in spec.hosted_parts}
    if part.engine not in BUILT_IN_ENGINES:
        return f"the memory that engine {part.engine!r} needs is not known"
    if spec.split is not None:
        return "hosts load the parts that spec.split makes of it"
    if (part.name, part.hardware[0].kind) in candidate.derived:
        return None
    if any(part_of(step, engines) == part.name for step in spec.optimization):
        return "hosts load what spec.optimization derives from it"
    return None


def _needs(candidate: Candidate, part: PartSpec) -> Mapping[str, Need]:
    """Return what the part needs on each hardware kind: by what was derived for the kind, if steps name kinds."""
    kinds = [option.kind for option in part.hardware]
    derived = {kind: candidate.derived[part.name, kind] for kind in kinds if (part.name, kind) in candidate.derived}
    if derived:
        return {kind: need_of(snapshot) for kind, snapshot in derived.items()}
    device = _device_bytes(candidate, part) if part.engine in SERVING_ENGINES else 0
    return dict.fromkeys(kinds, Need(_host_bytes(candidate, part), device))


def _host_bytes(candidate: Candidate, part: PartSpec) -> int:
    """Return the memory of a host with the part's snapshot and its adapters."""
    base, *deltas = _loaded(candidate, part.name)
    return PROCESS_BYTES + needed_bytes(base) + sum(map(weight_bytes, deltas)) + _more_bytes(candidate, part)


def _device_bytes(candidate: Candidate, part: PartSpec) -> int:
    """Return the memory of an engine that serves by itself: its weights, keys and values."""
    return sum(map(weight_bytes, _loaded(candidate, part.name))) + _more_bytes(candidate, part)


def _more_bytes(candidate: Candidate, part: PartSpec) -> int:
    """Return the weights of the part's adapters, and the keys and values of its engine."""
    adapters: Mapping[str, str] = candidate.manifest.spec.adapters
    loaded = [name for name, base in adapters.items() if base == part.name and name in candidate.snapshots]
    cache = vllm_settings(part.settings).kv_cache_bytes if part.engine in SERVING_ENGINES else 0
    return cache + sum(weight_bytes(candidate.snapshots[name].manifest) for name in loaded)


def _loaded(candidate: Candidate, part: str) -> list[SnapshotManifest]:
    """Return the manifests of a full snapshot and of the deltas on it."""
    return [snapshot.manifest for snapshot in candidate.chain(candidate.snapshots[part])]
