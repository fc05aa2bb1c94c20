"""A region starts no more hosts than its machine may run.

What is beyond that is not started, says why, and harms nothing else.
"""

import psutil
import pytest

from activities.state.observed import first_failure
from ipnext.infra.host.limit import BYTES_OF_ONE, FEWEST, HostPlace, HostRoom, machine_bytes, most_hosts
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.lifecycle.status import Reason
from tests.waiting import until

HOLDS = HostHolds(
    holds=(
        HostedSnapshot(
            model="m", part="p", engine="torch", snapshot=3, digest="d", uri="file:///s/3", generations=(7, 8)
        ),
    )
)


def place(room, name, patience=0.0):
    return HostPlace(room, name, patience_seconds=patience)


def test_a_place_is_free_again_once_the_host_that_had_it_has_ended():
    room = HostRoom("eu", 2)
    first, second, third = (place(room, name) for name in "abc")
    assert first.take()
    assert second.take()
    assert first.take(), "asked again it keeps its own"
    assert not third.take()
    assert third.refusal == ("not started: region eu runs 2 hosts, and its machine may run 2 (IPNEXT_AGENT_MAX_HOSTS)")
    room.give_back("a")
    assert third.take()
    assert third.refusal is None
    assert not first.take()


def test_hosts_that_run_already_keep_their_places_also_beyond_the_limit():
    room = HostRoom("eu", 1)
    assert all(place(room, name).take(runs_already=True) for name in "ab")
    room.give_back("a")
    assert not place(room, "c").take()


def test_what_a_host_without_a_place_should_hold_has_failed_after_a_while():
    room = HostRoom("eu", 0)
    patient, hasty = place(room, "a", patience=3600.0), place(room, "b")
    assert hasty.failures(HOLDS) == (), "nobody has asked for its place yet"
    patient.take()
    hasty.take()
    assert patient.failures(HOLDS) == ()
    [failure] = hasty.failures(HOLDS)
    assert (failure.snapshot, failure.generations, failure.code) == (3, (7, 8), "NoCapacity")
    assert failure.message == hasty.refusal


def test_the_machines_memory_gives_the_limit_and_its_regions_share_it():
    assert machine_bytes() <= psutil.virtual_memory().total
    assert most_hosts() == max(FEWEST, machine_bytes() // BYTES_OF_ONE)
    assert most_hosts(regions=2) == max(FEWEST, machine_bytes() // BYTES_OF_ONE // 2)
    assert most_hosts(regions=10**9) == FEWEST


@pytest.mark.usefixtures("subprocesses")
def test_an_agent_starts_the_hosts_that_its_machine_may_run_and_the_others_once_there_is_room(new_agent, builder):
    agent = new_agent(environment={"IPNEXT_AGENT_MAX_HOSTS": "2", "IPNEXT_AGENT_LOAD_RETRY_SECONDS": "0.1"}).start()
    first, second = builder("first"), builder("second")
    agent.serve(first, {1: (1,)}, {1: 1.0})
    agent.infra.apply(second.deployment({1: (1,)}, replicas=2))
    agent.await_ready(second.key(), 1, 1)

    def refused():
        return [r for r in agent.replicas(second.key()) if r.phase is ReplicaPhase.FAILED and r.failures]

    [beyond] = until(refused, why=lambda: f"one of second has no place: {agent.replicas(second.key())}")
    assert "eu runs 2 hosts, and its machine may run 2 (IPNEXT_AGENT_MAX_HOSTS)" in beyond.message
    assert (beyond.pid, beyond.restarts, beyond.ready) == (None, 0, ())
    failure = first_failure("second", 1, [agent.infra.observe("eu")])
    assert failure.reason is Reason.NO_CAPACITY
    assert "IPNEXT_AGENT_MAX_HOSTS" in failure.message
    assert agent.infer("first").status_code == 200

    agent.kill()
    agent.launch()
    agent.await_ready(first.key(), 1, 1)
    until(refused, why=lambda: "adopted hosts keep their places")

    agent.infra.unroute("first", "eu")
    agent.infra.delete(first.key())
    agent.await_ready(second.key(), 1, 2)
    assert {r.message for r in agent.replicas(second.key())} == {None}
