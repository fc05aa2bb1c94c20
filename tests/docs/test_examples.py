"""Every manifest of examples/ is one, and fits the fleet that it is shown with."""

from pathlib import Path

import pytest

from ipnext.api.admission import check_against_fleet
from ipnext.dev.platform import EMBEDDED_FLEET
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest import ModelManifest, parse_manifests

EXAMPLES = Path(__file__).parents[2] / "examples"
ON_THIS_MACHINE = {"chat-cpu.yaml", "model.yaml", "gated-ranker.yaml"}
"""Applied to `ipnext dev`; the others are for examples/fleet.yaml."""


def fleet(path):
    (found,) = (one for one in parse_manifests(path.read_text()) if isinstance(one, FleetManifest))
    return found.spec


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_read_and_fits_its_fleet(path):
    own = fleet(EMBEDDED_FLEET if path.name in ON_THIS_MACHINE else EXAMPLES / "fleet.yaml")
    for manifest in parse_manifests(path.read_text()):
        if isinstance(manifest, ModelManifest):
            check_against_fleet(manifest, own)
