"""Kinds of steps of this environment: the built-in ones, and those of other distributions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from ipnext import __version__
from ipnext.model.registry.optimization import FORM_OF_QUANTIZED
from ipnext.optimization_kinds import OptimizationKind, OptimizationKinds
from serving.compiling.compile import write_compiled
from serving.compiling.compiler import compiler_version
from serving.optimizing.quantize import quantize_snapshot


class QuantizeKind:
    """Step `quantize`; its settings are checked with the manifest."""

    def check(self, settings: Mapping[str, Any]) -> None:
        """See `OptimizationKind`."""

    def versions(self) -> Mapping[str, str]:
        """See `OptimizationKind`."""
        return {"quantize": str(FORM_OF_QUANTIZED), "torch": str(torch.__version__)}

    def derive(self, source: Path, settings: Mapping[str, Any], draft: Path) -> Any:
        """See `OptimizationKind`."""
        return quantize_snapshot(source, settings["embeddings"], tuple(settings["tables"]), draft)


class CompileKind:
    """Step `compile`; its settings are checked with the manifest."""

    def check(self, settings: Mapping[str, Any]) -> None:
        """See `OptimizationKind`."""

    def versions(self) -> Mapping[str, str]:
        """See `OptimizationKind`."""
        return {"compiler": compiler_version(), "torch": str(torch.__version__)}

    def derive(self, source: Path, settings: Mapping[str, Any], draft: Path) -> Any:
        """See `OptimizationKind`."""
        about = write_compiled(source, draft, tolerance=settings["tolerance"], cpu=settings["cpu"])
        return {"level": about.level, "differences": [each.model_dump() for each in about.differences]}


BUILT_IN_KINDS: Final[Mapping[str, Callable[[], OptimizationKind]]] = {"quantize": QuantizeKind, "compile": CompileKind}


def find_kind(name: str) -> OptimizationKind:
    """Return a kind. InvalidInput names the known ones."""
    built_in = BUILT_IN_KINDS.get(name)
    return OptimizationKinds().get(name) if built_in is None else built_in()


def tools_of(kind: OptimizationKind) -> Mapping[str, str]:
    """Return the tools of a kind with their versions, IPnext's included."""
    return {"ipnext": __version__, **kind.versions()}
