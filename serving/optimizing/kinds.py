"""Kinds of steps of this environment: the built-in one, and those of other distributions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ipnext import __version__
from ipnext.model.registry.optimization import FORM_OF_QUANTIZED
from ipnext.optimization_kinds import OptimizationKind, OptimizationKinds
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


def find_kind(name: str) -> OptimizationKind:
    """Return a kind. InvalidInput names the known ones."""
    return QuantizeKind() if name == "quantize" else OptimizationKinds().get(name)


def tools_of(kind: OptimizationKind) -> Mapping[str, str]:
    """Return the tools of a kind with their versions, IPnext's included."""
    return {"ipnext": __version__, **kind.versions()}
