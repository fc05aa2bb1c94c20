"""Every manifest of examples/ is one, fits the fleet that it is shown with, and is worth its replicas there."""

from pathlib import Path

import pytest

from activities.planning.policy import OBJECTIVE
from activities.planning.problem import fleet_problem, model_problem
from ipnext.api.services.checks.manifest import check_against_fleet
from ipnext.dev.stores import EMBEDDED_FLEET
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifests
from planner.solve import solve

EXAMPLES = Path(__file__).parents[2] / "examples"
PATHS = sorted(EXAMPLES.rglob("*.yaml"))
ON_THIS_MACHINE = {"chat-cpu.yaml", "model.yaml", "gated-ranker.yaml"}
"""Applied to `ipnext dev`; the others are for examples/fleet.yaml."""


def fleet(path):
    (found,) = (one for one in parse_manifests(path.read_text()) if isinstance(one, FleetManifest))
    return found.spec


def own_fleet(path):
    return fleet(EMBEDDED_FLEET if path.name in ON_THIS_MACHINE else EXAMPLES / "fleet.yaml")


def models(path):
    return [one for one in parse_manifests(path.read_text()) if isinstance(one, ModelManifest)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_read_and_fits_its_fleet(path):
    for manifest in models(path):
        check_against_fleet(manifest, own_fleet(path))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_all_demand_of_an_example_is_served_by_its_fleet(path):
    for manifest in models(path):
        plan = solve(fleet_problem(own_fleet(path), [model_problem(manifest)], objective=OBJECTIVE))
        assert plan.replicas
        assert not plan.unmet
