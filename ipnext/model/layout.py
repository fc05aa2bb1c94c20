"""The parts that serve a generation: those of the manifest, or those that its split makes of the one listed there."""

from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest import ModelManifest, ModelSpec, PartSpec
from ipnext.model.registry import Generation, Layout, LayoutPart
from ipnext.model.split import options_of


def laid_out(manifest: ModelManifest, generation: Generation | None) -> ModelManifest:
    """Return the manifest with the parts of a generation's layout in place of the part that is cut.

    For callers that need parts and their hardware; the graph is the layout's, not the manifest's.
    """
    layout = generation.layout if generation is not None else None
    if layout is None:
        return manifest
    spec = manifest.spec
    return manifest.model_copy(update={"spec": spec.model_copy(update={"parts": parts_of(spec, layout)})})


def parts_of(spec: ModelSpec, layout: Layout) -> tuple[PartSpec, ...]:
    """Return the layout's parts. All fields except name and hardware come from the part that was cut."""
    whole = next((part for part in spec.parts if part.name == layout.source), spec.parts[0])
    return tuple(
        whole.model_copy(update={"name": part.name, "hardware": hardware_of(spec, whole, layout, part)})
        for part in layout.parts
    )


def hardware_of(spec: ModelSpec, whole: PartSpec, layout: Layout, part: LayoutPart) -> tuple[HardwareOption, ...]:
    """Return the hardware from the manifest if it still cuts the same way, else the one at the time of the cut."""
    if spec.split is None or spec.split.cut != layout.cut:
        return part.hardware
    origin = spec.split.origin(part.name)
    return options_of(origin.hardware if origin else (), whole.hardware)
