"""What a client of a region's gateway sees: real agent, real Envoy."""

import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.deployment.deployment import AssignedSnapshot
from tests.waiting import until


@pytest.fixture(scope="module")
def served(session_agent, builder):
    """A model with generations 1 and 2, weighted 0.75 to 0.25, and 3 served without traffic."""
    model = builder("weighted")
    session_agent.infra.apply(model.deployment({1: (1,), 2: (2,), 3: (3,)}))
    session_agent.await_ready(model.key(), 3)
    session_agent.infra.route(model.table(1, {1: 0.75, 2: 0.25}, served=[1, 2, 3]))
    return session_agent


def test_requests_are_spread_by_weight(served):
    counts = Counter(served.infer("weighted").headers["x-ipnext-generation"] for _ in range(300))
    assert set(counts) == {"1", "2"}
    assert 0.1 < counts["2"] / 300 < 0.4, "six standard deviations"


def test_a_generation_named_by_header_is_kept(served):
    answers = [served.infer("weighted", generation=2) for _ in range(10)]
    assert {answer.headers["x-ipnext-generation"] for answer in answers} == {"2"}
    assert answers[0].json()["parts"]["dense"]["snapshot"] == 2


def test_a_served_generation_without_traffic_can_be_named(served):
    assert served.infer("weighted", generation=3).headers["x-ipnext-generation"] == "3"


def test_a_generation_named_by_path_is_kept(served):
    answers = [served.infer("weighted", version=2) for _ in range(5)]
    assert {answer.headers["x-ipnext-generation"] for answer in answers} == {"2"}


@pytest.mark.parametrize("how", ["generation", "version"])
def test_an_unknown_generation_is_refused_with_the_served_ones(served, how):
    answer = served.infer("weighted", **{how: 9})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert "served: 1, 2, 3" in answer.json()["error"]


def test_a_generation_that_is_no_number_is_refused(served):
    assert served.infer("weighted", generation="newest").status_code == 404


def test_an_unknown_model_is_refused_with_the_known_ones(served):
    answer = served.infer("absent")
    assert answer.status_code == 404
    assert "weighted" in answer.json()["error"]


def test_a_model_whose_name_begins_like_another_is_not_taken_for_it(served):
    assert served.infer("weighted-2").status_code == 404


def segments(model, digests, **settings):
    """One host of the part `tower` that holds a snapshot of each segment."""
    held = tuple(
        AssignedSnapshot(part=part, snapshot=1, digest=digest, uri=f"file:///s/{part}", generations=(1,))
        for part, digest in digests.items()
    )
    return model.deployment({}, part="tower", **settings).model_copy(update={"holds": held})


def test_one_host_answers_for_every_segment_that_it_holds(shared_agent, builder):
    model = builder("cut", parts=("tower-s0", "tower-s1"))
    shared_agent.infra.apply(segments(model, {"tower-s0": "d0", "tower-s1": "d1"}))
    shared_agent.await_ready(model.key("tower"), 1)
    shared_agent.infra.route(model.table(1, {1: 1.0}))
    answer = shared_agent.infer("cut").json()
    assert set(answer["parts"]) == {"tower-s0", "tower-s1"}
    assert len({part["host"] for part in answer["parts"].values()}) == 1


def test_a_host_that_cannot_load_one_segment_answers_for_none(shared_agent, builder):
    model = builder("half", parts=("tower-s0", "tower-s1"))
    shared_agent.infra.apply(segments(model, {"tower-s0": "d0", "tower-s1": "bad"}))
    key = model.key("tower")
    until(lambda: any(r.failures for r in shared_agent.replicas(key)), why=lambda: "a failure is told")
    [replica] = shared_agent.replicas(key)
    assert replica.ready == ()
    assert replica.failures[0].generations == (1,)
    shared_agent.infra.route(model.table(1, {1: 1.0}))
    assert shared_agent.infer("half").status_code == 503


def test_a_model_without_shares_asks_to_come_back(shared_agent, builder):
    shared_agent.infra.route(builder("empty").table(1, {}))
    answer = shared_agent.infer("empty")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "no capacity" in answer.json()["error"]


def test_users_whom_the_plan_serves_nowhere_are_told_the_rules(shared_agent, builder):
    table = builder("refused").table(1, {})
    shared_agent.infra.route(table.model_copy(update={"unmet_rules": ("supply here/cpu",)}))
    answer = shared_agent.infer("refused")
    assert answer.status_code == 503
    assert "serves no users of region" in answer.json()["error"]
    assert "supply here/cpu" in answer.json()["error"]


def test_an_unrouted_model_is_unknown_at_once(shared_agent, builder):
    model = builder("leaving")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0})
    assert shared_agent.infer("leaving").status_code == 200
    shared_agent.infra.unroute("leaving", "eu")
    assert shared_agent.infer("leaving").status_code == 404
    assert "leaving" not in shared_agent.infra.observe("eu").routes


def test_a_route_is_in_force_when_the_call_returns(shared_agent, builder):
    model = builder("prompt")
    shared_agent.serve(model, {1: (1,), 2: (2,)}, {1: 1.0})
    for revision in range(2, 8):
        chosen = 1 + revision % 2
        shared_agent.infra.route(model.table(revision, {chosen: 1.0}, served=[1, 2]))
        assert shared_agent.infra.observe("eu").routes["prompt"] == revision
        assert {shared_agent.infer("prompt").headers["x-ipnext-generation"] for _ in range(3)} == {str(chosen)}


def test_the_router_has_the_shares_of_a_generating_model_when_the_call_returns(shared_agent, builder):
    """It chooses the generation of OpenAI requests, whose body no gateway reads."""
    model = builder("generating")

    def shares():
        choices = json.loads((shared_agent.state / "router.json").read_text())["choices"]
        return {s["generation"]: s["fraction"] for one in choices if one["model"] == model.model for s in one["shares"]}

    for revision, wanted in ((1, {1: 1.0}), (2, {1: 0.25, 2: 0.75})):
        table = model.table(revision, wanted, served=[1, 2])
        served = tuple(one.model_copy(update={"engines": {"dense": "vllm"}}) for one in table.served)
        shared_agent.infra.route(table.model_copy(update={"served": served}))
        assert shares() == wanted
    shared_agent.infra.route(model.table(3, {1: 1.0}, served=[1]))
    assert shares() == {}, "a model of V2 alone"
    shared_agent.infra.unroute(model.model, "eu")


def test_tables_of_many_models_at_once_are_all_in_force_after_few_writes(shared_agent, builder):
    models = [builder(f"crowd-{number}") for number in range(48)]
    absent = builder("crowd-absent").table(1, {("nowhere", 1): 1.0})
    agent, file = shared_agent, shared_agent.state / "envoy" / "routes.json"

    def put(model, revision):
        agent.infra.route(model.table(revision, {}))
        return agent.infra.observe("eu").routes[model.model]

    def refused():
        with pytest.raises(InvalidInput, match="nowhere"):
            agent.infra.route(absent)

    for revision in (1, 2):
        before = int(json.loads(file.read_bytes())["version_info"])
        with ThreadPoolExecutor(len(models) + 1) as pool:
            bad = pool.submit(refused)
            assert list(pool.map(put, models, [revision] * len(models))) == [revision] * len(models)
            bad.result()
        assert int(json.loads(file.read_bytes())["version_info"]) - before < len(models) / 2
    routes = agent.infra.observe("eu").routes
    assert {routes[model.model] for model in models} == {2}
    assert "crowd-absent" not in routes


def test_a_rollout_under_load_has_no_error(shared_agent, builder, load):
    """Load, shift in steps, unload the old one: what the transition workflow does."""
    model = builder("rolling", parts=("dense", "sparse"))
    shared_agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=2)
    with load(shared_agent, "rolling") as clients:
        for part in model.parts:
            shared_agent.infra.apply(model.deployment({1: (1,), 2: (2,)}, replicas=2, part=part))
        for part in model.parts:
            shared_agent.await_ready(model.key(part), 2, replicas=2)
        for revision, fraction in enumerate((0.1, 0.5, 1.0), start=2):
            shared_agent.infra.route(
                model.table(revision, {1: 1 - fraction, 2: fraction} if fraction < 1 else {2: 1.0})
            )
        for part in model.parts:
            shared_agent.infra.apply(model.deployment({2: (2,)}, replicas=2, part=part))
        for part in model.parts:
            shared_agent.await_ready(model.key(part), 1, replicas=0)
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]
    assert {generation for _, generation in clients.answers} == {"1", "2"}


def test_a_host_is_told_what_is_left_of_the_drain_with_what_it_unloads(shared_agent, builder, tmp_path):
    model, gate = builder("draining"), tmp_path / "gate"
    shared_agent.serve(model, {1: (1,), 2: (2,)}, {1: 1.0})
    with ThreadPoolExecutor(1) as asking:
        slow = asking.submit(shared_agent.infer, "draining", until=gate)
        until(lambda: under_way(shared_agent, "draining"), why=lambda: "it is under way")
        shared_agent.infra.route(model.table(2, {2: 1.0}))
        told = model.deployment({2: (2,)}).model_copy(update={"drain_seconds": 300.0})
        shared_agent.infra.apply(told)
        time.sleep(0.6)  # of the drain; less than 299.5 s are left then
        gate.touch()
        log = shared_agent.state / "logs" / f"{model.key().model}.dense.cpu.0.log"
        until(lambda: "unloads 1" in log.read_text(), why=lambda: "the host unloads what is no longer wanted")
        assert slow.result().status_code == 200
    (left,) = re.findall(r"unloads 1, drain (\S+) s", log.read_text())
    assert 100 < float(left) < 299.5


def under_way(agent, model):
    return sum(count.in_flight for count in agent.infra.observe("eu", {model}).traffic)


def test_scaling_down_under_load_has_no_error(shared_agent, builder, load):
    model = builder("shrinking")
    shared_agent.serve(model, {1: (1,)}, {1: 1.0}, replicas=3)
    with load(shared_agent, "shrinking") as clients:
        shared_agent.infra.apply(model.deployment({1: (1,)}, replicas=1))
        until(lambda: len(shared_agent.replicas(model.key())) == 1, why=lambda: "two replicas have ended")
    logs = [path.read_text() for path in (shared_agent.state / "logs").glob("shrinking.*")]
    assert len(logs) == 3
    assert not any("asked while draining" in log for log in logs), "it drained before it had left the router"
    assert {status for status, _ in clients.answers} == {200}, clients.bad[:3]


def test_a_share_of_another_region_is_answered_there(new_agent, builder, tmp_path):
    peers = tmp_path / "peers.json"
    eu, us = new_agent("eu", peers=peers).start(), new_agent("us", peers=peers).start()
    peers.write_text(json.dumps({"eu": eu.peer_url, "us": us.peer_url}))
    here, there = builder("spread", "eu"), builder("spread", "us")
    us.serve(there, {1: (1,), 2: (2,)}, {1: 1.0})
    us.infra.route(there.table(2, {1: 1.0}, served=[1, 2]))
    eu.serve(here, {1: (1,)}, {1: 1.0})
    until(
        lambda: accepted(lambda: eu.infra.route(here.table(2, {1: 0.5, ("us", 2): 0.5}))),
        why=lambda: "eu has read its peers",
    )

    answers = [eu.infer("spread") for _ in range(100)]
    assert {answer.status_code for answer in answers} == {200}
    counts = Counter((a.headers["x-ipnext-region"], a.headers["x-ipnext-generation"]) for a in answers)
    assert set(counts) == {("eu", "1"), ("us", "2")}
    assert 25 < counts["us", "2"] < 75
    assert {a.json()["forwarded"] for a in answers if a.headers["x-ipnext-region"] == "us"} == {"eu;chosen-by=weight"}

    assert {answer.json()["chosen"] for answer in answers if answer.headers["x-ipnext-region"] == "eu"} == {"weight"}

    for more in ({"x-ipnext-generation": "1"}, {"x-ipnext-generation": "2"}):
        forged = eu.client.post(
            f"{eu.gateway}/v2/models/spread/infer",
            json={"until": None},
            headers={**more, "x-ipnext-chosen-by": "weight"},
        )
        assert (forged.status_code, forged.json()["chosen"]) == (200, None), "only gateways say who chose"
    named = eu.client.post(
        f"{eu.gateway}/v2/models/spread/versions/1/infer",
        json={"until": None},
        headers={"x-ipnext-chosen-by": "weight"},
    )
    assert (named.status_code, named.json()["chosen"]) == (200, None)

    pinned = eu.infer("spread", generation=2)
    assert pinned.headers["x-ipnext-region"] == "us"
    # Both send generation 5 to each other and neither has it: the request ends, it does not go round.
    eu.infra.route(here.table(3, {1: 0.5, ("us", 5): 0.5}))
    us.infra.route(there.table(3, {1: 0.5, ("eu", 5): 0.5}))
    assert eu.infer("spread", generation=5).status_code == 404


def accepted(call):
    """Whether the call went through: an agent reads a new peers file a moment after it was written."""
    try:
        call()
    except InvalidInput:
        return False
    return True
