"""API, worker, agent, supervisor, router and hosts of two builds at once, both ways round, under load: nothing is refused, nothing is lost.

The next build (next_build.py) has a field more in every channel and a revision more of the schema. The schema is the newer one in each
case, as it is once the first worker of a new build has started.
"""

import signal

import httpx
import pytest

from ipnext.client import Client
from ipnext.model.deployment import ReplicaPhase
from ipnext.model.lifecycle import ChangeState
from tests.e2e.conftest import MANIFEST, snapshots
from tests.processes import gone
from tests.waiting import until
from tests.workflows.mixed_platform import THIS, Build, Load, MixedPlatform, Publisher, tells_the_field
from tests.workflows.next_build import API_ANSWER, CHANNELS, IDENTITY, TO_AGENT, used

FLEET = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east]
  rttMs: [[1]]
  hardware: [cpu]
  supply:
    - {region: us-east, hardware: cpu, units: 12, unitCost: 1.0}
"""
REFUSALS = (
    *("process not adopted", "wanted state refused", "supervisor not usable", "supervisor lost"),
    *("cannot be read", "extra_forbidden", "InternalError", "change_stuck", "outbox_failed", "not forked"),
)
"""What components write if they cannot read each other."""


def manifest(model: str, qps: int) -> str:
    """The model of two parts for one region."""
    demand = "demand: [{region: us-east, qps: 50}, {region: eu-west, qps: 50}]"
    assert demand in MANIFEST
    text = MANIFEST.replace(demand, f"demand: [{{region: us-east, qps: {qps}}}]")
    return text.replace("name: pair, owner", f"name: {model}, owner").replace(
        "canary: 0.5", "holdSeconds: 0, canary: 0.5"
    )


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Snapshots of both parts with three marks."""
    return tuple(snapshots(tmp_path_factory.mktemp(f"mark-{mark}"), float(mark)) for mark in (1, 2, 3))


@pytest.fixture
def platform(own_temporal, next_python, tmp_path):
    found = MixedPlatform(tmp_path, {"this": THIS, "next": next_python}, own_temporal)
    yield found
    found.close()


@pytest.fixture
def client(platform):
    found = Client(platform.api)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("before", "after", "unused"),
    [("this", "next", {API_ANSWER, TO_AGENT, IDENTITY}), ("next", "this", {API_ANSWER})],
    ids=["upgrade", "way back"],
)
def test_no_prediction_fails_and_no_publish_is_lost_while_builds_are_mixed(
    platform, client, next_python, marked, before, after, unused
):
    model = "pair"
    migrate = "import sys; from ipnext.store.session import Store; store = Store.open(sys.argv[1]); store.migrate(); store.close()"
    platform.run("next", "-c", migrate, platform.url)
    for name in ("agent", "worker-1", "api"):
        platform.start(name, before)
    for name in ("agent", "worker-1", "api"):
        platform.ready(name)
    client.apply(FLEET)
    client.apply(manifest(model, 150))
    with Publisher(platform, model, marked) as publisher:
        until(lambda: publisher.ended, why=platform.logs)
        with Load(platform, model) as load:
            replace_control_plane(platform, publisher, after)
            ran = {process.pid for process in platform.processes("serving.")}
            replace_agent(platform, after)
            assert {process.pid for process in platform.processes("serving.")} == ran, "all is adopted"
            client.apply(manifest(model, 250))
            until(lambda: builds_of(platform, "serving.host") == {"this", "next"}, why=platform.logs)
            assert all(platform.forked(host) for host in platform.processes("serving.host") if host.pid not in ran)
            both_go_on(platform, model, publisher, load)

            [router] = platform.processes("serving.router")
            router.terminate()
            until(lambda: builds_of(platform, "serving.router") == {after}, why=platform.logs)
            both_go_on(platform, model, publisher, load)

            replace_hosts(platform, before)
            assert builds_of(platform, "serving.") == {after}
            both_go_on(platform, model, publisher, load)
    assert set(load.answers) == {200}, load.bad[:5]
    assert not load.bad
    assert not publisher.failures
    states = {change.id: change.state for change in client.changes(model)}
    assert publisher.taken
    assert states.keys() >= set(publisher.taken)
    assert set(states.values()) == {ChangeState.DONE}
    assert client.readiness().stuck_changes == 0
    told = platform.every_line()
    assert not [refusal for refusal in REFUSALS if refusal in told], platform.logs()
    assert CHANNELS - used(next_python) == unused


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


def replace_agent(platform: MixedPlatform, build: Build) -> None:
    """As an upgrade does it. The fork server of the new agent's build is ready on return."""
    platform.end("agent", signal.SIGKILL)
    platform.start("agent", build)
    platform.ready("agent")
    until(lambda: platform.fork_servers() == 2, why=platform.logs)


def replace_hosts(platform: MixedPlatform, before: Build) -> None:
    """Those of the former build, one after the other."""
    replicas = len(platform.region.replicas)
    for host in [host for host in platform.processes("serving.host") if platform.built(host) == before]:
        host.terminate()
        until(lambda host=host: gone([host]) and serving(platform) == replicas, why=platform.logs)


def both_go_on(platform: MixedPlatform, model: str, publisher: Publisher, load: Load) -> None:
    """Publishes and predictions, and the router describes the model, for which it asks a host."""
    publisher.one_more()
    load.more(20)
    assert httpx.get(f"{platform.gateway}/v2/models/{model}", trust_env=False, timeout=60).status_code == 200


def serving(platform: MixedPlatform) -> int:
    """Replicas of the region that answer for a generation."""
    return len([one for one in platform.region.replicas if one.phase is ReplicaPhase.RUNNING and one.ready])


def builds_of(platform: MixedPlatform, word: str) -> set[str]:
    """The builds that processes with this word in their command line are of."""
    return {platform.built(process) for process in platform.processes(word)}
