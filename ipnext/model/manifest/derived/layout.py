"""The parts that serve a generation: those of the manifest, or those that its split makes of the one listed there.

A generation that has served keeps its parts, also those that a newer manifest no longer has.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.manifest import ModelManifest, ModelSpec
from ipnext.model.manifest.part import PartSpec
from ipnext.model.manifest.split import options_of
from ipnext.model.registry.registry import Generation, HostedPart, Hosting, LayoutPart, SplitLayout


def laid_out(manifest: ModelManifest, generation: Generation | None) -> ModelManifest:
    """Return the manifest with the parts of a generation: those of its layout in place of the part that is cut.

    Parts of a newer manifest that the generation lacks are left out. Parts of the generation that the manifest lacks,
    or has with another engine, are those that it served with. For callers that need parts and their hardware; the graph
    is the layout's, not the manifest's.
    """
    if generation is None:
        return manifest
    spec, layout, former = manifest.spec, generation.layout, _former_parts(generation)
    if layout is None:
        parts = _own_parts(spec, generation, former)
        if not parts or parts == spec.parts:
            return manifest
    else:
        parts = parts_of(spec, layout, former)
    return manifest.model_copy(update={"spec": spec.model_copy(update={"parts": parts})})


def hosting_of(manifest: ModelManifest, generation: Generation) -> Hosting:
    """Return what a generation keeps of the manifest that it serves by: its hosted parts, or the one that is cut."""
    spec, layout = manifest.spec, generation.layout
    if layout is None:
        hosted = laid_out(manifest, generation).spec.hosted_parts
        return Hosting(parts=tuple(_to_hosted_part(part) for part in hosted if part.name in generation.parts))
    return Hosting(parts=(_to_hosted_part(_whole(spec, layout, _former_parts(generation))),))


def parts_of(
    spec: ModelSpec, layout: SplitLayout, former: Mapping[str, HostedPart] = MappingProxyType({})
) -> tuple[PartSpec, ...]:
    """Return the layout's parts. All fields except name and hardware come from the part that was cut.

    It is the one of `former` (part -> what the generation served with) if the manifest no longer has it.
    """
    whole = _whole(spec, layout, former)
    return tuple(
        whole.model_copy(update={"name": part.name, "hardware": hardware_of(spec, whole, layout, part)})
        for part in layout.parts
    )


def hardware_of(spec: ModelSpec, whole: PartSpec, layout: SplitLayout, part: LayoutPart) -> tuple[HardwareOption, ...]:
    """Return the hardware from the manifest if it still cuts the same way, else the one at the time of the cut."""
    if spec.split is None or spec.split.cut_digest != layout.cut:
        return part.hardware
    origin = spec.split.origin(part.name)
    return options_of(origin.hardware if origin else (), whole.hardware)


def _own_parts(spec: ModelSpec, generation: Generation, former: Mapping[str, HostedPart]) -> tuple[PartSpec, ...]:
    """Return the manifest's adapters and its hosted parts that the generation has, then the generation's other ones."""
    own = set(generation.parts)
    engines = {name: served.engine for name, served in former.items()}
    found = [
        part
        for part in spec.parts
        if (part.adapter_of is None) == (part.name in own) and engines.get(part.name, part.engine) == part.engine
    ]
    named = {part.name for part in found}
    return (*found, *(_spec_of(former[name]) for name in generation.parts if name in former and name not in named))


def _whole(spec: ModelSpec, layout: SplitLayout, former: Mapping[str, HostedPart]) -> PartSpec:
    """Return the part that was cut: the manifest's, else the one that the generation served with."""
    found = next((part for part in spec.parts if part.name == layout.source), None)
    if found is not None:
        return found
    return _spec_of(former[layout.source]) if layout.source in former else spec.parts[0]


def _former_parts(generation: Generation) -> Mapping[str, HostedPart]:
    return {part.name: part for part in generation.hosting.parts} if generation.hosting else {}


def _spec_of(part: HostedPart) -> PartSpec:
    return PartSpec(
        name=part.name,
        engine=part.engine,
        hardware=part.hardware,
        min_replicas=part.min_replicas,
        memory_bytes=part.memory_bytes,
        settings=part.settings,
    )


def _to_hosted_part(part: PartSpec) -> HostedPart:
    return HostedPart(
        name=part.name,
        engine=part.engine,
        hardware=part.hardware,
        min_replicas=part.min_replicas,
        memory_bytes=part.memory_bytes,
        settings=part.settings,
    )
