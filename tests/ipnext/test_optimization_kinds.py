"""Kinds of steps of other distributions: found by entry points, checked at an apply, refused alone."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.optimization_kinds import OptimizationKinds
from tests.plugin_packages import write_distribution

PRUNE = """
class Prune:
    def check(self, settings):
        if settings.get("share") == "all":
            raise SystemExit(3)
        if not 0 < settings.get("share", 0) < 1:
            raise ValueError("share: has to be between 0 and 1")

    def versions(self):
        return {"prune": "1"}

    def derive(self, source, settings, draft):
        return {}

class Half:
    def check(self, settings):
        pass
"""


def step(kind="prune", **settings):
    return OptimizationStep.model_validate({"plugin": {"kind": kind, "settings": settings}})


@pytest.fixture
def kinds(tmp_path, monkeypatch):
    points = {"prune": "prunes:Prune", "half": "prunes:Half", "quantize": "prunes:Prune", "gone": "prunes:Gone"}
    write_distribution(tmp_path, "prunes", PRUNE, {"ipnext.optimizations": points})
    monkeypatch.syspath_prepend(str(tmp_path))
    return OptimizationKinds()


def test_a_kind_of_a_distribution_is_found_and_broken_ones_are_refused_alone(kinds):
    assert list(kinds.by_name) == ["prune"]
    kinds.check([step(share=0.5)])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (step(share=2), "spec.optimization.1: share: has to be between 0 and 1"),
        (step(share="half"), "spec.optimization.1: the check of 'prune' ended with TypeError: '<' not supported"),
        (step(share="all"), "spec.optimization.1: the check of 'prune' ended with SystemExit: 3"),
        (step("gone"), "spec.optimization.1: 'gone' is no kind of step here; allowed: prune"),
    ],
)
def test_wrong_settings_and_unknown_kinds_are_refused_with_their_place(kinds, given, told):
    with pytest.raises(InvalidInput, match=r"spec.optimization.1") as refused:
        kinds.check([step(share=0.5), given])
    assert told in refused.value.message
    assert refused.value.field.startswith("spec.optimization.1")
