"""API, worker, agent, supervisor, router and hosts of two builds at once, both ways round, under load.

Nothing is refused, nothing is lost. The next build (next_build.py) has a field more in every channel and a revision
more of the schema. The schema is the newer one in each case, as it is once the first worker of a new build has started.

Each of the two regions serves what the other one has no hardware for, so that half of all requests cross regions:
`pair` runs in us-east, the generative `chat` in eu-west, on the mock engine. One stream of tokens goes on from the
first exchange of an agent to the last host.
"""

import signal
from contextlib import ExitStack

import httpx
import pytest

from ipnext.client import Client
from ipnext.model.lifecycle.changes.change import ChangeState
from tests.e2e.conftest import MANIFEST
from tests.genai.support.checkpoints import write_llama
from tests.genai.support.hosts import mock_command
from tests.genai.support.regions import ENDLESS, Stream
from tests.genai.support.streaming_clients import StreamingClients
from tests.marked_parts import export_pair
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until
from tests.workflows.builds.mixed_clients import Listener, Load, Publisher, again, tells_the_field
from tests.workflows.builds.mixed_platform import THIS, Build, MixedPlatform, MixedRegion
from tests.workflows.builds.next_build import API_ANSWER, CHANNELS, IDENTITY, PORTS, TO_AGENT, used

EAST, WEST = "us-east", "eu-west"
FLEET = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east, eu-west]
  rttMs: [[1, 20], [20, 1]]
  hardware: [cpu, gpu]
  supply:
    - {region: us-east, hardware: cpu, units: 12, unitCost: 1.0}
    - {region: eu-west, hardware: gpu, units: 4, unitCost: 1.0}
"""
CHAT = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: chat, owner: tests}
spec:
  task: generation
  parts:
    - {name: llm, engine: vllm, hardware: [{kind: gpu, units: 1, qps: 100}]}
  demand: [{region: us-east, qps: 20}, {region: eu-west, qps: 20}]
  latencyToleranceMs: 500
  rollout: {canary: 0.5, maxStep: 1, holdSeconds: HOLD, deadlineSeconds: 600, drainSeconds: 3600}
"""
STREAMS = 2
"""Clients of `chat`, each in us-east."""
REFUSALS = (
    *("process not adopted", "wanted state refused", "supervisor not usable", "supervisor lost"),
    *("cannot be read", "extra_forbidden", "InternalError", "change_stuck", "outbox_failed", "not forked"),
    *("answers cut", "peers file refused"),
)
"""What components write if they cannot read each other."""


def pair(qps: int) -> str:
    """The model of two parts, for both regions."""
    demand = "demand: [{region: us-east, qps: 50}, {region: eu-west, qps: 50}]"
    assert demand in MANIFEST
    text = MANIFEST.replace(demand, f"demand: [{{region: us-east, qps: {qps}}}, {{region: eu-west, qps: 50}}]")
    return text.replace("canary: 0.5", "holdSeconds: 0, canary: 0.5")


def chat(hold_seconds: int) -> str:
    """The generative model, whose rollouts rest for so long behind the canary."""
    return CHAT.replace("HOLD", str(hold_seconds))


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Snapshots of both parts of `pair` with three marks."""
    return tuple(export_pair(tmp_path_factory.mktemp(f"mark-{mark}"), float(mark)) for mark in (1, 2, 3))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three checkpoints of `chat`; the engine's words have their digests."""
    root = tmp_path_factory.mktemp("checkpoints")
    return [write_llama(root / str(seed), seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def platform(own_temporal, next_python, tmp_path):
    pythons = {"this": THIS, "next": next_python}
    command = mock_command(weights="{directory}", itl_ms=50, until=tmp_path / "told")
    regions = (
        MixedRegion(EAST, tmp_path, pythons),
        # its hosts are never forked, and a fork server for them costs a second
        MixedRegion(
            WEST, tmp_path, pythons, IPNEXT_VLLM_COMMAND=command, IPNEXT_AGENT_FORK_SERVER='["serving.router"]'
        ),
    )
    found = MixedPlatform(tmp_path, pythons, own_temporal, regions)
    yield found
    (tmp_path / "told").touch()  # what is left of a stream would be waited for
    found.close()


@pytest.fixture
def client(platform):
    found = Client(platform.api)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("before", "after", "unused"),
    [
        pytest.param("this", "next", {API_ANSWER, TO_AGENT, IDENTITY, PORTS}, id="upgrade"),
        pytest.param("next", "this", {API_ANSWER}, id="way back", marks=pytest.mark.nemesis),
    ],
)
def test_no_answer_fails_and_no_publish_is_lost_while_builds_are_mixed(
    platform, client, next_python, marked, checkpoints, before, after, unused
):
    east, west = (platform.regions[name] for name in (EAST, WEST))
    begin(platform, client, before)
    publisher = Publisher(platform.api, "pair", marked, why=platform.logs)
    with ExitStack() as clients:
        clients.enter_context(publisher)
        publish(client, checkpoints[0])
        until(lambda: publisher.ended, why=platform.logs)
        listener = clients.enter_context(Listener(platform.api))
        load = clients.enter_context(Load([east.gateway, west.gateway], "pair"))
        streamers = clients.enter_context(StreamingClients(east.gateway, streams=STREAMS))

        held = begin_held(client, checkpoints[1])
        replace_control_plane(platform, publisher, after)
        again(lambda: client.promote("chat"))
        assert client.wait_change(held, PATIENCE_SECONDS).state is ChangeState.DONE, (
            "one build began it, the other ended it"
        )

        client.apply(chat(hold_seconds=0))
        stream = Stream(east.gateway, ENDLESS)
        adopt(platform, west, after)
        publish(client, checkpoints[2])
        assert west.builds_of("serving.genai.host") == {"this", "next"}
        streamers.await_answers()
        replace_router(platform, west, after, ends=False)
        both_go_on(platform, publisher, load, streamers)  # the regions are of different builds

        adopt(platform, east, after)
        east_hosts = {process.pid for process in east.processes("serving.host")}
        client.apply(pair(250))
        until(lambda: east.builds_of("serving.host") == {"this", "next"}, why=platform.logs)
        assert all(east.forked(host) for host in east.processes("serving.host") if host.pid not in east_hosts)
        both_go_on(platform, publisher, load, streamers)
        replace_router(platform, east, after, ends=False)  # it passes the stream on, which began in this region
        both_go_on(platform, publisher, load, streamers)

        replace_hosts(platform, east, before)
        end_stream(platform, west, before, stream)
        for region in (east, west):
            assert region.builds_of("serving.") == {after}
        both_go_on(platform, publisher, load, streamers)
    assert set(load.answers) == {200}, load.bad[:5]
    assert set(load.seen) == {(east.gateway, EAST), (west.gateway, EAST)}, "users of eu-west are answered in us-east"
    check_streams(streamers)
    check_changes(client, publisher)
    check_events(client, listener)
    told = platform.every_line()
    assert not [refusal for refusal in REFUSALS if refusal in told], platform.logs()
    assert CHANNELS - used(next_python) == unused


def begin(platform: MixedPlatform, client: Client, build: Build) -> None:
    """The platform, of one build on the newer schema, with both models applied."""
    opened = "import sys; from ipnext.store.store import Store; store = Store.open(sys.argv[1])"
    migrate = f"{opened}; store.migrate(); store.close()"
    platform.run("next", "-c", migrate, platform.url)
    platform.note_administrator()
    processes = (f"agent-{EAST}", f"agent-{WEST}", "worker-1", "api")
    for name in processes:
        platform.start(name, build)
    for name in processes:
        platform.ready(name)
    for text in (FLEET, pair(150), chat(hold_seconds=0)):
        client.apply(text)


def publish(client: Client, checkpoint: object) -> None:
    """A generation of `chat` that serves."""
    change = client.publish("chat", {"llm": checkpoint})
    ended = client.wait_change(change.id, PATIENCE_SECONDS)
    assert ended.state is ChangeState.DONE, ended


def begin_held(client: Client, checkpoint: object) -> str:
    """A rollout of `chat` that rests behind its canary until a person goes on. The id of the change."""
    client.apply(chat(hold_seconds=100_000))
    change = client.publish("chat", {"llm": checkpoint})

    def shares() -> set[int]:
        return {share.generation for shares in client.model("chat").status.traffic.values() for share in shares}

    until(lambda: len(shares()) == 2, why=lambda: client.change(change.id))
    return change.id


def replace_control_plane(platform: MixedPlatform, publisher: Publisher, build: Build) -> None:
    """The API, then the worker; for a while there are workers of both builds."""
    platform.end("api")
    platform.start("api", build)
    platform.ready("api")
    assert tells_the_field(f"{platform.api}/readyz") == (build == "next")
    publisher.one_more()
    platform.start("worker-2", build)
    platform.ready("worker-2")
    publisher.one_more()
    platform.end("worker-1")
    publisher.one_more()


def adopt(platform: MixedPlatform, region: MixedRegion, build: Build) -> None:
    """Replace the agent as an upgrade does; all that runs goes on.

    The fork server of the new agent's build is ready on return.
    """
    until(
        lambda: len(region.processes("serving.genai.host")) <= 1, why=platform.logs
    )  # the former one is not kept warm
    ran = {process.pid for process in region.processes("serving.")}
    platform.end(f"agent-{region.name}", signal.SIGKILL)
    platform.start(f"agent-{region.name}", build)
    platform.ready(f"agent-{region.name}")
    until(lambda: region.fork_servers() == 2, why=platform.logs)
    assert {process.pid for process in region.processes("serving.")} >= ran, "all is adopted"


def replace_router(platform: MixedPlatform, region: MixedRegion, build: Build, *, ends: bool = True) -> None:
    """As an upgrade does it.

    One that has a stream under way goes on beside the next one: `ends` says that there is none.
    """
    [router] = region.processes("serving.router")
    router.terminate()
    builds = {build} if ends else {"this", "next"}
    until(lambda: region.builds_of("serving.router") == builds, why=platform.logs)


def replace_hosts(platform: MixedPlatform, region: MixedRegion, before: Build) -> None:
    """Those of the former build, one after the other."""
    replicas = len(region.observed.replicas)
    for host in [host for host in region.processes("serving.host") if region.built(host) == before]:
        host.terminate()
        until(lambda host=host: gone([host]) and region.serving() == replicas, why=platform.logs)


def end_stream(platform: MixedPlatform, region: MixedRegion, before: Build, stream: Stream) -> None:
    """The host of the former build and the former routers end once the stream that began on them is whole."""
    replicas = len(region.observed.replicas)
    [host] = [host for host in region.processes("serving.genai.host") if region.built(host) == before]
    host.terminate()
    until(lambda: region.serving() < replicas, why=platform.logs)
    assert not stream.over, stream.error
    (platform.root / "told").touch()
    stream.ended()
    words = "".join(text for text, _ in stream.pieces).split()
    assert stream.error is None, stream.error
    assert [word.rpartition("-")[2] for word in words] == [str(number) for number in range(len(words))]
    assert len({word.rpartition("-")[0] for word in words}) == 1, "one generation"
    assert stream.pieces[-1][1], "the engine has ended it"
    until(lambda: gone([host]) and region.serving() == len(region.observed.replicas), why=platform.logs)
    for each in platform.regions.values():
        until(lambda each=each: len(each.processes("serving.router")) == 1, why=platform.logs)


def both_go_on(platform: MixedPlatform, publisher: Publisher, load: Load, streamers: StreamingClients) -> None:
    """Publishes, predictions and streams, and each router describes the model, for which it asks a host."""
    publisher.one_more()
    load.more(10)
    streamers.await_answers()
    answer = httpx.get(f"{platform.regions[EAST].gateway}/v2/models/pair", trust_env=False, timeout=60)
    assert answer.status_code == 200


def check_streams(streamers: StreamingClients) -> None:
    """Each stream whole, of one generation, and each generation's text its own."""
    assert streamers.broken == []
    texts: dict[tuple[str, str], set[str]] = {}
    for (_, generation, prompt), said in streamers.said.items():
        texts.setdefault((generation, prompt), set()).update(said)
    assert {generation for generation, _ in texts} == {"1", "2", "3"}
    assert all(len(said) == 1 for said in texts.values())
    assert len({min(said) for said in texts.values()}) == 3


def check_changes(client: Client, publisher: Publisher) -> None:
    """All that was acknowledged has ended well."""
    assert not publisher.failures
    states = {change.id: change.state for change in client.changes("pair", limit=None)}
    assert publisher.taken
    assert states.keys() >= set(publisher.taken)
    assert set(states.values()) == {ChangeState.DONE}
    assert client.readiness().stuck_changes == 0


def check_events(client: Client, listener: Listener) -> None:
    """Each event has come once, from APIs of both builds."""
    assert listener.next_build == {True, False}
    assert listener.ids == list(range(listener.ids[0], listener.ids[-1] + 1))
