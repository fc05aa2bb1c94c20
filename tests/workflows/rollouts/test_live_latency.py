"""The check `live-latency`: replicas of both generations are timed before users are sent to the new one."""

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from ipnext.api.app import create_app
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.errors import NotFound, Unavailable
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.gate.live import ROUNDS, ReplicaTimes, RoundTimes
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.checks import LIVE_LATENCY
from ipnext.model.lifecycle.status import Reason
from ipnext.settings import PlatformSettings

pytestmark = pytest.mark.usefixtures("workers")

LIMITS = {"maxP50Ratio": 1.2, "minThroughputRatio": 0.8, "part": "sparse"}
FEATURES = np.arange(400, dtype=np.float32).reshape(100, 4)


@pytest.fixture
def publish(house, kit, model, carried_out):
    """Publish a generation whose part `sparse` brings a replay set, and wait for its end."""

    async def publish(number, **replay):
        tensors = {"features": FEATURES, **replay}
        files = {"replay.safetensors": save(tensors)} if tensors["features"] is not None else {}
        sparse = house.source(kit.SPARSE, kit.weights(number), more=files)
        return await carried_out(house.publish(model, number, sparse=sparse))

    return publish


@pytest.fixture
def results(house, model):
    """Outcome and message of the check in a generation's report."""

    def results(generation):
        with house.store.read() as unit:
            report = unit.report(model, generation)
        return [(each.outcome.value, each.message) for each in report.checks if each.check == LIVE_LATENCY]

    return results


def timings(house):
    return [moment for moment in house.infrastructure.calls("time_replicas") if moment.refused is None]


async def test_a_slow_generation_is_refused_before_any_user_reaches_it_and_serves_once_overridden(
    house, model, publish, results, ended, temporal_address, monkeypatch
):
    house.apply(model, validation={"liveLatency": LIMITS})
    first = await publish(1)
    assert first.state is ChangeState.DONE, first.message
    assert results(1) == [("skipped", "no other generation serves: there is nothing to compare with")]
    house.infrastructure.answer_with(model, 2, seconds=0.004)

    refused = await publish(2)

    assert (refused.state, refused.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    figures = "p50 4 ms against 2 ms: ratio 2.00 (2.00 to 2.00 in 5 rounds), allowed 1.2"
    assert f"{LIVE_LATENCY}: sparse: on cpu in eu-west against generation 1: {figures}" in refused.message
    assert len(timings(house)) == ROUNDS
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    sent = {
        share.generation for m in house.infrastructure.calls("route") for t in m.routes.values() for share in t.shares
    }
    assert sent == {1}
    assert [outcome for outcome, _ in results(2)] == ["refused"]

    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    lifecycle = TemporalLifecycle(ui_url="http://127.0.0.1:8233")
    settings = PlatformSettings(authentication="none")
    app = create_app(house.store, house.artifacts, house.infrastructure, lifecycle, settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as http,
    ):
        body = {"reason": "twice as good, twice as slow", "check": LIVE_LATENCY}
        answer = await http.post(f"/v1/changes/{refused.id}/override", json=body)
        assert answer.status_code == 200, answer.text
        again = await ended(answer.json()["again"])

    assert again.state is ChangeState.DONE, again.message
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    ((outcome, message),) = results(2)
    assert outcome == "overridden"
    assert "twice as good, twice as slow; on cpu in eu-west against generation 1: p50 4 ms" in message


async def test_a_generation_as_fast_as_before_serves_and_its_report_has_the_figures(house, model, publish, results):
    house.apply(model, validation={"liveLatency": LIMITS})
    await publish(1)
    second = await publish(2)
    assert second.state is ChangeState.DONE, second.message
    ((outcome, message),) = results(2)
    assert outcome == "passed"
    assert "p50 2 ms against 2 ms: ratio 1.00" in message
    with house.store.read() as unit:
        (check,) = [each for each in unit.report(model, 2).checks if each.check == LIVE_LATENCY]
    assert check.evidence["ratios"]["throughput"] == [1.0] * ROUNDS
    assert check.evidence["limits"]["maxP50Ratio"] == 1.2


async def test_limits_without_a_replay_set_refuse(house, model, publish, results):
    house.apply(model, validation={"liveLatency": LIMITS})
    await publish(1)
    refused = await publish(2, features=None)
    assert refused.reason is Reason.GATE_FAILED
    assert results(2) == [("refused", "the limits can't be judged: snapshot 2 has no replay.safetensors")]
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}


async def test_a_round_that_fails_is_made_again_and_the_others_are_not(house, model, publish):
    house.apply(model, validation={"liveLatency": LIMITS})
    await publish(1)
    for error in (Unavailable("the agent starts again"), NotFound("no replica 'x' is ready")):
        house.infrastructure.fail_next("time_replicas", error)
    second = await publish(2)
    assert second.state is ChangeState.DONE, second.message
    assert len(house.infrastructure.calls("time_replicas")) == ROUNDS + 2


class Readiness:
    """Hides generations from what regions observe of the part `sparse`, as if its replicas were not ready for them."""

    def __init__(self, infrastructure):
        self.hidden, self.looks = set(), 0
        """Generations, and the number of looks at both generations for which the first one is hidden."""
        self.rounds, self.after_round = 0, lambda _: None
        self._observe, self._time = infrastructure.observe, infrastructure.time_replicas
        infrastructure.observe, infrastructure.time_replicas = self.observe, self.time_replicas

    def observe(self, region, models=None):
        state = self._observe(region, models)
        sparse = [each for each in state.replicas if each.key.part == "sparse"]
        hidden = set(self.hidden)
        if self.looks and any(2 in each.ready for each in sparse):
            self.looks, hidden = self.looks - 1, {1}
        seen = tuple(
            each.model_copy(update={"ready": tuple(set(each.ready) - hidden)}) if each in sparse else each
            for each in state.replicas
        )
        return state.model_copy(update={"replicas": seen})

    def time_replicas(self, region, asked):
        times = self._time(region, asked)
        self.rounds += 1
        return self.after_round(asked) or times


@pytest.fixture
def readiness(house):
    return Readiness(house.infrastructure)


async def test_a_serving_replica_that_restarts_is_waited_for_and_then_timed(house, model, publish, results, readiness):
    house.apply(model, validation={"liveLatency": LIMITS})
    await publish(1)
    readiness.looks = 8
    second = await publish(2)
    assert second.state is ChangeState.DONE, second.message
    ((outcome, message),) = results(2)
    assert (outcome, readiness.looks) == ("passed", 0), message
    assert readiness.rounds == ROUNDS


async def test_a_serving_replica_that_is_not_ready_in_time_leaves_the_check_open_and_says_so(
    house, model, publish, results, readiness
):
    house.apply(model, validation={"liveLatency": LIMITS}, rollout={"deadlineSeconds": 1})
    await publish(1)
    readiness.hidden = {1}
    second = await publish(2)
    assert second.state is ChangeState.DONE, second.message
    ((outcome, message),) = results(2)
    assert outcome == "not_judged"
    lacking = "the limits can't be judged: no replica of generation 1 is ready on cpu in eu-west, cpu in us-east"
    assert message.startswith(lacking)
    with house.store.read() as unit:
        (check,) = [each for each in unit.report(model, 2).checks if each.check == LIVE_LATENCY]
        events = [event for event in unit.events(model, limit=100) if event.kind == "NotJudged"]
    assert check.evidence["ready"][0] == {"region": "eu-west", "hardware": "cpu", "new": 2, "serving": 0}
    assert check.evidence["waitedSeconds"] >= 1
    assert lacking in events[0].message
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}


@pytest.mark.parametrize(("made", "outcome"), [(2, "not_judged"), (3, "passed")])
async def test_rounds_before_the_serving_replica_went_count_if_they_are_enough(
    house, model, publish, results, readiness, made, outcome
):
    house.apply(model, validation={"liveLatency": LIMITS}, rollout={"deadlineSeconds": 1})
    await publish(1)
    readiness.after_round = lambda _: readiness.hidden.update({1} if readiness.rounds == made else ())
    second = await publish(2)
    assert second.state is ChangeState.DONE, second.message
    ((found, message),) = results(2)
    assert found == outcome, message
    assert (f"{made} of {ROUNDS} rounds were made" if made == 2 else "in 3 rounds") in message
    assert readiness.rounds == made


async def test_a_new_generation_that_is_ready_no_more_is_refused(house, model, publish, results, readiness):
    house.apply(model, validation={"liveLatency": LIMITS}, rollout={"deadlineSeconds": 1})
    await publish(1)
    readiness.after_round = lambda _: readiness.hidden.add(2)
    second = await publish(2)
    assert (second.state, second.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    ((outcome, message),) = results(2)
    assert outcome == "refused"
    assert "no replica of generation 2 is ready" in message


async def test_a_round_in_which_the_serving_replica_restarted_is_made_again(house, model, publish, results, readiness):
    house.apply(model, validation={"liveLatency": LIMITS})
    await publish(1)

    def restart(asked):
        if readiness.rounds > 1:
            return None
        assert asked.serving.id != asked.new.id
        key = DeploymentKey(model=model, part="sparse", region="eu-west", hardware="cpu")
        house.infrastructure.crash(key, int(asked.serving.id.rpartition(".")[2]))
        good = ReplicaTimes(single=(0.002,) * 20, together=(0.008,) * 5)
        return RoundTimes(new=good, serving=ReplicaTimes(failed=20, error="connection reset"))

    readiness.after_round = restart
    second = await publish(2)
    assert second.state is ChangeState.DONE, second.message
    ((outcome, message),) = results(2)
    assert outcome == "passed", message
    assert readiness.rounds == ROUNDS + 1
    assert "in 5 rounds" in message


async def test_nothing_is_timed_if_the_manifest_skips_the_check_or_has_no_limits(house, model, publish, results):
    house.apply(model, validation={"liveLatency": LIMITS, "skip": {LIVE_LATENCY: "moves to slower hardware"}})
    await publish(1)
    second = await publish(2)
    assert second.state is ChangeState.DONE, second.message
    assert results(2) == [("skipped", "skipped: moves to slower hardware")]
    house.apply(model)
    await publish(3)
    assert timings(house) == []
