"""Reading regions: ready or not, broken or not."""

import pytest

from activities.state.observed import first_failure, missing_replicas
from activities.state.wave_state import ModelWaveState
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import LoadFailure, Replica, ReplicaPhase
from ipnext.model.lifecycle.status import Reason
from ipnext.store.operations.change_end import judge_up_to_date

KEY = DeploymentKey(model="ranker", part="dense", region="us-east", hardware="cpu")
STATE = ModelWaveState(counts={(("dense", "us-east", "cpu"), 2): 2})


def region(*replicas: Replica) -> RegionState:
    return RegionState(region="us-east", gateway_url="http://gateway", replicas=replicas)


def replica(number: int, **more: object) -> Replica:
    return Replica(**{"id": f"r{number}", "key": KEY, "phase": ReplicaPhase.RUNNING, **more})


def test_draining_replicas_and_other_generations_do_not_count_as_ready():
    state = region(
        replica(1, ready=(1, 2)), replica(2, ready=(2,), phase=ReplicaPhase.DRAINING), replica(3, ready=(1,))
    )

    assert missing_replicas("ranker", STATE, {"us-east": state}) == (
        "dense in us-east on cpu: 1 of 2 ready for generation 2",
    )


def test_a_region_that_does_not_answer_is_not_ready():
    assert missing_replicas("ranker", STATE, {})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("OutOfMemory", Reason.OUT_OF_MEMORY),
        ("MemoryExceeded", Reason.OUT_OF_MEMORY),
        ("SignatureInvalid", Reason.SIGNATURE_INVALID),
        ("Unavailable", Reason.UNAVAILABLE),
        ("ArtifactMissing", Reason.ARTIFACT_MISSING),
        ("what?", Reason.LOAD_FAILED),
    ],
)
def test_a_load_failure_keeps_its_reason(code, reason):
    failure = LoadFailure(snapshot=2, generations=(2,), code=code, message="no")

    found = first_failure("ranker", 2, [region(replica(1, failures=(failure,)))])

    assert found is not None
    assert found.reason is reason
    assert first_failure("ranker", 1, [region(replica(1, failures=(failure,)))]) is None


def test_a_replica_that_ends_again_and_again_is_a_crash_loop():
    down = replica(1, phase=ReplicaPhase.FAILED, restarts=2)
    assert first_failure("ranker", 2, [region(down)]) is None

    found = first_failure("ranker", 2, [region(down.model_copy(update={"restarts": 3}))])

    assert found is not None
    assert found.reason is Reason.CRASH_LOOP


class Record:
    """What `judge_up_to_date` reads of a model."""

    def __init__(self, **more: object) -> None:
        self.__dict__ = {"retired": False, "serving_generation": 1, "observed_generation": 1, "generation": 1, **more}


class Wanted:
    def __init__(self, number: int, reason: str | None = None, message: str | None = None) -> None:
        self.number, self.reason, self.message = number, reason, message


@pytest.mark.parametrize(
    ("record", "wanted", "expected"),
    [
        (Record(), Wanted(1), ("True", Reason.SUCCEEDED)),
        (Record(), Wanted(2, "GateFailed", "too many errors"), ("False", Reason.GATE_FAILED)),
        (Record(), Wanted(2), ("False", Reason.PROGRESSING)),
        (Record(generation=2), Wanted(1), ("False", Reason.SUPERSEDED)),
        (Record(retired=True), Wanted(1), ("False", Reason.NOT_PUBLISHED)),
        (Record(serving_generation=None), None, ("False", Reason.NOT_PUBLISHED)),
    ],
)
def test_up_to_date_is_true_only_while_the_newest_wanted_state_serves(record, wanted, expected):
    found = judge_up_to_date(record, wanted, [])

    assert (found.status, found.reason) == expected
