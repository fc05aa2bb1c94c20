"""The parts that serve a generation: those of the manifest, or those that its split makes of the one listed there."""

from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.manifest import ModelManifest, ModelSpec, PartSpec
from ipnext.model.manifest.split import options_of
from ipnext.model.registry.registry import Generation, LayoutPart, SplitLayout


def laid_out(manifest: ModelManifest, generation: Generation | None) -> ModelManifest:
    """Return the manifest with the parts of a generation: those of its layout in place of the part that is cut.

    Parts of a newer manifest that the generation lacks are left out. For callers that need parts and their hardware;
    the graph is the layout's, not the manifest's.
    """
    if generation is None:
        return manifest
    spec, layout = manifest.spec, generation.layout
    if layout is None:
        parts = tuple(part for part in spec.parts if part.adapter_of is not None or part.name in generation.parts)
        if not parts or len(parts) == len(spec.parts):
            return manifest
    else:
        parts = parts_of(spec, layout)
    return manifest.model_copy(update={"spec": spec.model_copy(update={"parts": parts})})


def parts_of(spec: ModelSpec, layout: SplitLayout) -> tuple[PartSpec, ...]:
    """Return the layout's parts. All fields except name and hardware come from the part that was cut."""
    whole = next((part for part in spec.parts if part.name == layout.source), spec.parts[0])
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
