"""A cut into more parts than a plan takes is refused."""

from temporalio.testing import ActivityEnvironment

from activities.optimization.activities import OptimizationActivities
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason


def test_a_cut_into_too_many_parts_is_refused_and_no_plan_knows_the_manifest(house, kit, monkeypatch):
    """How many parts shards of so many bytes make is known once the model is cut."""
    house.apply_split("ranker", kit.BY_TABLE)
    house.publish_whole("ranker", 1, change_id="c1")
    stage = StageInput(model="ranker", change_id="c1", kind=ChangeKind.PUBLISH, generation=1)
    activities = OptimizationActivities(house.store, house.artifacts, cutter=house.cutter)
    monkeypatch.setattr("activities.optimization.splitter.MOST_HOSTED_PARTS", 1)
    found = ActivityEnvironment().run(activities.optimize_generation, stage)
    assert (found.refused, found.reason) == (True, Reason.SPLIT_REFUSED)
    assert "it makes 2 parts; allowed: 1" in found.summary
    with house.store.read() as unit:
        assert unit.model("ranker").refused_generation == 1
    monkeypatch.setattr("activities.optimization.splitter.MOST_HOSTED_PARTS", 2)
    assert not ActivityEnvironment().run(activities.optimize_generation, stage).refused
