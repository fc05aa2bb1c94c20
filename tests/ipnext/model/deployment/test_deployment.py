"""What a replica says of itself to people."""

from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.engine_start import EngineStart
from ipnext.model.deployment.engine_swap import EngineSwap
from ipnext.model.deployment.replica import LoadFailure, Replica, ReplicaPhase

KEY = DeploymentKey(model="chat", part="llm", region="us", hardware="gpu")


def replica(**facts):
    return Replica(id="chat.llm.gpu.0", key=KEY, phase=ReplicaPhase.RUNNING, **facts)


def swap(state, **facts):
    return EngineSwap(model="chat", part="llm", former=1, snapshot=2, state=state, **facts)


def test_one_that_stays_and_is_well_says_nothing():
    assert replica(ready=(1,)).note == ""


def test_a_failure_is_said_rather_than_the_message_of_its_process():
    failure = LoadFailure(snapshot=2, generations=(2,), code="LoadFailed", message="no such file")
    assert replica(message="ended by SIGKILL").note == "ended by SIGKILL"
    assert replica(message="ended by SIGKILL", failures=(failure,)).note == "no such file"


def test_a_swap_is_told_from_its_beginning_to_its_end():
    going = replica(coming=(2,), swaps=(swap("swapping"),))
    assert going.note == "goes over to generation 2; swaps llm from snapshot 1 to 2"
    assert replica(swaps=(swap("swapped", seconds=0.44),)).note == "swapped llm from snapshot 1 to 2 in 0.4 s"
    anew = swap("started_anew", seconds=3.0, message="other shapes")
    assert replica(swaps=(anew,)).note == "could not swap llm from snapshot 1 to 2, started anew: other shapes"


def test_an_engine_that_starts_is_told_with_how_long_and_what_it_said_last():
    loading = EngineStart(part="llm", snapshot=2, stage="loading", seconds=34.4, output="INFO Loading weights")
    fetching = EngineStart(part="llm", snapshot=3, stage="fetching", seconds=2.0)
    told = "llm snapshot 2: vLLM loads the model, 34 s; last output: INFO Loading weights"
    assert replica(starts=(loading,)).note == told
    assert replica(starts=(loading, fetching)).note == f"{told}; llm snapshot 3: is fetched and checked, 2 s"
    assert replica(message="ended by SIGKILL", starts=(loading,)).note == f"ended by SIGKILL; {told}"
