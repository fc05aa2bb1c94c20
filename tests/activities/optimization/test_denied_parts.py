"""What a step or a split makes of published snapshots is judged by the deny-list, too."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.optimization.activities import OptimizationActivities
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason

pytestmark = pytest.mark.trust


def optimize(house, generation):
    activities = OptimizationActivities(house.store, house.artifacts, cutter=house.cutter)
    stage = StageInput(model="ranker", change_id=f"c{generation}", kind=ChangeKind.PUBLISH, generation=generation)
    return ActivityEnvironment().run(activities.optimize_generation, stage)


def test_a_segment_with_a_denied_file_is_refused_after_it_was_cut(house, kit):
    house.apply_split("ranker", kit.BY_TABLE)
    house.publish_whole("ranker", 1, change_id="c1")
    assert not optimize(house, 1).refused
    with house.store.read() as unit:
        segment = next(each for each in unit.snapshots("ranker") if each.part == "dense")
    files = {each.path: each.sha256 for each in segment.manifest.files}
    with house.store.begin() as unit:
        unit.put_denial(files["weights.safetensors"], reason="poisoned", denied_by="ann")
    house.publish_whole("ranker", 2, change_id="c2")
    found = optimize(house, 2)
    assert (found.refused, found.reason) == (True, Reason.SNAPSHOT_DENIED)
    assert "is denied: poisoned" in found.summary
    with house.store.read() as unit:
        assert unit.generation("ranker", 2).layout is None
