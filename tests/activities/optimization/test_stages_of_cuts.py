"""A model that is split, with steps for single hardware kinds, in the other stages: freeze, shadow and explanation."""

import pytest

from activities.deployment.freeze_activities import FreezeActivities
from activities.metadata.activities import MetadataActivities
from activities.optimization.activities import OptimizationActivities
from activities.stages.shadow import ShadowActivities
from ipnext.api.services.explanation import explanation_of
from ipnext.api.services.model_facts import model_facts
from ipnext.api.services.region_states import States
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import ProgressInput
from ipnext.model.lifecycle.shadow import ShadowAsked
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.parser import parse_manifest
from ipnext.platform.denials import carry_out_denials
from tests.activities.carried_out import CarriedOut

MODEL = "ranker"
REGIONS = ("us-east", "eu-west")
FLEET = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east, eu-west]
  rttMs: [[1, 76], [76, 1]]
  hardware: [cpu, small]
  supply:
    - {region: us-east, hardware: small, units: 40, unitCost: 1}
    - {region: eu-west, hardware: cpu, units: 40, unitCost: 1}
"""
WHOLE = {
    "name": "whole",
    "engine": "torch",
    "hardware": [{"kind": "cpu", "units": 1, "qps": 100}, {"kind": "small", "units": 1, "qps": 100}],
}
FREEZE = {
    "apiVersion": "ipnext/v1",
    "kind": "Freeze",
    "metadata": {"name": "sale"},
    "spec": {
        "reason": "sale",
        "scope": {"regions": ["us-east"]},
        "windows": [{"start": "2020-01-01T00:00", "end": "2099-01-01T00:00"}],
    },
}


class Platform(CarriedOut):
    """Derives and cuts generations, too. Of the part sparse, `small` loads the cut of what was quantized for it."""

    def __post_init__(self):
        super().__post_init__()
        house = self.house
        self.metadata = MetadataActivities(house.store, house.artifacts)
        self.optimization = OptimizationActivities(
            house.store, house.artifacts, cutter=house.cutter, deriver=house.deriver
        )

    def publish(self, seed):
        """Publish a generation, and begin its change; it is derived and cut."""
        change = self.house.publish_whole(MODEL, seed, change_id=f"c{seed}")
        progress = ProgressInput(model=MODEL, change_id=change.id, stage="begin", run_id="run")
        self.env.run(self.metadata.begin_change, progress)
        self.env.run(self.metadata.resolve_snapshots, self.stage(change, change.generation))
        return change, self.optimize(change)

    def optimize(self, change):
        return self.env.run(self.optimization.optimize_generation, self.stage(change, change.generation))

    def explained(self):
        """The explanation, and its links by level."""
        states = States({region: self.house.infrastructure.observe(region) for region in REGIONS})
        with self.house.store.read() as unit:
            found = explanation_of(unit, model_facts(unit, MODEL), states)
        return found, {step.level: step for step in found.chain}


@pytest.fixture
def platform(house, kit):
    """Generation 1 serves: on small in us-east, on cpu in eu-west."""
    house.apply_fleet(FLEET)
    steps = [{"quantize": {"embeddings": "int8", "hardware": ["small"]}}]
    house.apply_split(MODEL, kit.BY_TABLE, parts=[WHOLE], optimization=steps)
    platform = Platform(house)
    change, made = platform.publish(1)
    assert not made.refused, made.summary
    platform.carry_out(change, 1)
    return platform


def generation(house, number):
    with house.store.read() as unit:
        return unit.generation(MODEL, number)


def test_a_freeze_holds_the_change_with_its_cuts_which_are_not_made_again(house, platform):
    change, _ = platform.publish(2)
    made, cuts = generation(house, 2), house.cutter.calls
    assert made.by_hardware == {"small": {"sparse": 4}}
    freezes = FreezeActivities(house.store)
    with house.store.begin() as unit:
        unit.put_freeze(parse_manifest(FREEZE), expected_version=None)
    held = platform.env.run(freezes.freeze_of, platform.stage(change, 2))
    assert held.frozen is not None
    assert house.condition(MODEL, ConditionType.UP_TO_DATE).reason is Reason.FROZEN
    assert not platform.optimize(change).refused, "as of a run that begins again"
    assert (generation(house, 2).layout, house.cutter.calls) == (made.layout, cuts)
    with house.store.begin() as unit:
        unit.delete_freeze("sale", expected_version=None)
    assert platform.env.run(freezes.freeze_of, platform.stage(change, 2)).frozen is None


@pytest.mark.trust
def test_the_processes_of_a_shadow_load_the_cut_of_their_hardware_until_what_was_cut_is_denied(house, platform):
    change, _ = platform.publish(2)
    shadows = ShadowActivities(house.store, house.infrastructure)
    asked = ShadowAsked(
        model=MODEL,
        change_id=change.id,
        kind=change.kind,
        generation=2,
        settings={"share": 0.2, "minRequests": 10, "seconds": 600},
    )
    assert platform.env.run(shadows.keep_shadow, asked).state == "planned"
    with house.store.read() as unit:
        shadow = unit.shadow(MODEL)
        whole = unit.snapshot(MODEL, "whole", 4)
    loaded = {(one.key.part, one.key.hardware): [hold.snapshot for hold in one.holds] for one in shadow.sets}
    assert loaded == {
        ("sparse", "small"): [4],
        ("sparse", "cpu"): [3],
        ("dense", "small"): [2],
        ("dense", "cpu"): [2],
    }
    served = shadow.shadow.served
    assert (served.snapshots, served.by_hardware) == ({"sparse": 3, "dense": 2}, {"small": {"sparse": 4}})
    assert whole.hardware == ("small",)
    with house.store.begin() as unit:
        unit.put_denial(whole.digest, reason="a fault", denied_by="ops")
    carry_out_denials(house.store)
    seen = platform.env.run(shadows.keep_shadow, asked)
    assert (seen.state, seen.message) == ("refused", "snapshot 4 of 'sparse' is denied")


def test_an_explanation_names_the_part_and_the_hardware_whose_cut_does_not_load(house, platform):
    change, _ = platform.publish(2)
    with house.store.read() as unit:
        house.infrastructure.fail_load(unit.snapshot(MODEL, "sparse", 4).digest)
    assert platform.placed(change, 2).feasible
    platform.planned(change, 2)
    failed = platform.walk(change, 2, [0])
    assert "broken on purpose" in failed
    assert not platform.walk(change, 2, [0], back=True, reason=Reason.LOAD_FAILED, message=failed)
    platform.end(change, 2, ChangeState.ROLLED_BACK, Reason.LOAD_FAILED, failed)
    found, chain = platform.explained()
    assert (found.reason, chain["part"].subject) == (Reason.LOAD_FAILED, "sparse")
    assert (chain["region"].subject, chain["region"].state) == ("us-east", "on small")
    assert "host" in chain


def test_an_explanation_of_a_cut_that_does_not_fit_names_derivative_and_difference(house, kit, platform):
    house.cutter.sends = [kit.IN, kit.IN.model_copy(update={"datatype": "UINT8"})]
    change, refused = platform.publish(2)
    platform.end(change, 2, ChangeState.REFUSED, refused.reason, refused.summary)
    found, chain = platform.explained()
    assert (found.reason, chain["change"].state) == (Reason.SPLIT_REFUSED, "refused")
    assert found.message.startswith("split: snapshot 4 of whole, derived for small: it can't be cut like that of other")
    assert found.message.endswith("output features UINT8 [-1, 4] in place of output features FP32 [-1, 4]")
    assert (chain["step"].subject, chain["cause"].message) == ("validate", found.message)
    assert "spec.optimization" in found.advice
