"""Hosts as pods, on an API server without a node: a test writes what a node would report."""

import asyncio
from signal import SIGKILL, SIGTERM

import pytest

from ipnext.errors import Unavailable
from ipnext.infra.kubernetes.cluster import ClusterEvent
from ipnext.infra.kubernetes.documents import NOTE_ANNOTATION, SERVING_CONDITION
from ipnext.infra.kubernetes.pod_notes import LONGEST_NOTE
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds
from tests.ipnext.infra.kubernetes.samples import KEY, identity, note
from tests.kubernetes.rest_client import Refused
from tests.waiting import eventually

RUNNING = {"phase": "Running", "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}


def program_of(hosts, number=0, **key):
    of = identity(number, **key)
    return hosts.program(of, lambda: note(of))


def pods(kube):
    return kube.items("Pod")


def only(kube):
    (pod,) = pods(kube)
    return pod


def report(kube, name, **status):
    kube.merge("Pod", name, {"status": status}, "status")


def terminated(code, reason="Error"):
    state = {"terminated": {"exitCode": code, "reason": reason}}
    return [
        {"name": "host", "state": state, "ready": False, "restartCount": 0, "image": "i", "imageID": "i"},
    ]


def waiting(name, reason, message):
    state = {"waiting": {"reason": reason, "message": message}}
    return [{"name": name, "state": state, "ready": False, "restartCount": 0, "image": "i", "imageID": "i"}]


async def test_a_host_is_a_pod_whose_address_follows(pod_hosts, kube):
    async with pod_hosts() as hosts:
        program = program_of(hosts)
        started = await program.start()
        pod = only(kube)
        assert program.url == ""
        assert program.log == f"default/{pod['metadata']['name']}"
        report(kube, started.name, **RUNNING)
        await eventually(lambda: program.url)
        assert program.url == "https://10.1.2.3:8443"


async def test_an_address_of_ipv6_is_in_brackets(pod_hosts, kube):
    async with pod_hosts() as hosts:
        program = program_of(hosts)
        started = await program.start()
        report(kube, started.name, phase="Running", podIP="fd00::1", podIPs=[{"ip": "fd00::1"}])
        await eventually(lambda: program.url == "https://[fd00::1]:8443")


@pytest.mark.parametrize(("signal", "grace"), [(SIGTERM, 15), (SIGKILL, 1)])
async def test_a_signal_deletes_the_pod_and_its_end_is_that_of_the_host(pod_hosts, kube, signal, grace):
    async with pod_hosts() as hosts:
        program = program_of(hosts)
        started = await program.start()
        bind(kube, started.name)
        started.signal(signal)
        await eventually(lambda: "deletionTimestamp" in only(kube)["metadata"])
        assert only(kube)["metadata"]["deletionGracePeriodSeconds"] == grace
        kube.delete("Pod", started.name, {"gracePeriodSeconds": 0})
        assert await started.wait() == -signal.value


def bind(kube, name):
    """Bind it to a node, so that a deletion waits for the node's word."""
    target = {"apiVersion": "v1", "kind": "Node", "name": "nowhere"}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    kube.send("POST", kube.path("Pod", name, "binding"), binding)


async def test_a_host_that_ends_says_how_and_its_pod_is_removed(pod_hosts, kube):
    async with pod_hosts() as hosts:
        program = program_of(hosts)
        started = await program.start()
        report(kube, started.name, phase="Failed", containerStatuses=terminated(137, "OOMKilled"))
        assert await started.wait() == 137
        assert program.describe_end(137) == "OOMKilled (status 137)"
        await eventually(lambda: not pods(kube))


async def test_an_evicted_host_names_the_clusters_reason(pod_hosts, kube):
    async with pod_hosts() as hosts:
        program = program_of(hosts)
        started = await program.start()
        report(kube, started.name, phase="Failed", reason="Evicted", message="The node was low on memory.")
        await started.wait()
        assert program.describe_end(-9) == "Evicted: The node was low on memory."


async def test_a_pod_that_somebody_deletes_has_ended(pod_hosts, kube):
    async with pod_hosts() as hosts:
        started = await program_of(hosts).start()
        kube.delete("Pod", started.name)
        assert await started.wait() == -SIGKILL.value


@pytest.mark.parametrize(
    ("status", "obstacle"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        ),
        (
            {"containerStatuses": waiting("host", "ImagePullBackOff", "Back-off pulling image")},
            "ImagePullBackOff (host): Back-off pulling image",
        ),
        (
            {"initContainerStatuses": waiting("proxy", "CrashLoopBackOff", "back-off 10s restarting")},
            "CrashLoopBackOff (proxy): back-off 10s restarting",
        ),
    ],
)
async def test_why_a_pod_does_not_run_is_said_in_the_clusters_words(pod_hosts, kube, status, obstacle):
    async with pod_hosts() as hosts:
        program = program_of(hosts)
        started = await program.start()
        assert program.obstacle is None
        report(kube, started.name, **status)
        await eventually(lambda: program.obstacle)
        assert program.obstacle == obstacle


async def test_a_refusal_of_the_cluster_is_the_reason_and_leaves_nothing(pod_hosts, kube, server):
    async with pod_hosts() as hosts:
        server.refuse(403, verbs=("create",), plurals=("pods",))
        with pytest.raises(OSError, match=r"POST .*/pods: 403: "):
            await program_of(hosts).start()
        assert pods(kube) == []


async def test_a_hardware_kind_without_an_entry_is_named_with_the_allowed_ones(pod_hosts):
    async with pod_hosts() as hosts:
        with pytest.raises(LookupError, match=r"'l4' has no entry in .*hardware\.yaml .*allowed: cpu"):
            await program_of(hosts, hardware="l4").start()


async def test_an_engine_with_a_server_of_its_own_is_refused(pod_hosts):
    async with pod_hosts() as hosts:
        of = identity(engine="vllm")
        with pytest.raises(OSError, match="vllm does not run in pods yet"):
            await hosts.program(of, lambda: note(of)).start()


@pytest.mark.parametrize("is_seen_first", [True, False])
async def test_a_pod_whose_creation_got_no_answer_is_deleted_as_a_stray(pod_hosts, kube, is_seen_first):
    async with pod_hosts() as hosts:
        hosts.find_adopted()
        program = program_of(hosts)
        create = hosts._cluster.create

        async def lose_answer(kind, document):
            await create(kind, document)
            if is_seen_first:
                await eventually(lambda: any(pod.document for pod in hosts._pods.values()))
            msg = "no answer"
            raise Unavailable(msg)

        hosts._cluster.create = lose_answer
        with pytest.raises(OSError, match="no answer"):
            await program.start()
        hosts._cluster.create = create
        await eventually(lambda: not pods(kube))
        await program.start()
        assert len(pods(kube)) == 1


async def test_the_next_agent_finds_a_host_with_its_last_note(pod_hosts, kube):
    holds = HostHolds(holds=())
    async with pod_hosts() as hosts:
        hosts.find_adopted()
        started = await program_of(hosts, 3).start()
        report(kube, started.name, **RUNNING)
        hosts.note(identity(3).name, note(identity(3), stamp="first"))
        hosts.note(identity(3).name, note(identity(3), stamp="last", sent=holds))
        await hosts.wait_noted(identity(3).name)
    async with pod_hosts() as hosts:
        ((name, (found, running)),) = hosts.find_adopted().items()
        assert (name, found.stamp, found.sent) == (identity(3).name, "last", holds)
        program = program_of(hosts, 3)
        program.adopt(found)
        assert program.url == "https://10.1.2.3:8443"
        kube.delete("Pod", started.name, {"gracePeriodSeconds": 0})
        await running.wait()


async def test_a_pod_without_a_valid_note_is_deleted(pod_hosts, kube):
    async with pod_hosts() as hosts:
        started = await program_of(hosts).start()
        kube.merge("Pod", started.name, {"metadata": {"annotations": {NOTE_ANNOTATION: "{"}}})
    async with pod_hosts() as hosts:
        assert hosts.find_adopted() == {}
        await eventually(lambda: not pods(kube))


FORGED = {
    "deep": "[" * 100_000,
    "another replica": note(identity(7)).model_dump_json(),
    "another model": note(identity(model="other")).model_dump_json(),
    "large number": note(identity()).model_dump_json().replace('"number":0', '"number":' + "9" * 4000),
    "no text": note(identity()).model_dump_json().replace('"stamp":""', '"stamp":"\\ud800"'),
}


@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_note_is_no_note_and_stops_no_agent(pod_hosts, kube, forged):
    async with pod_hosts() as hosts:
        started = await program_of(hosts).start()
        kube.merge("Pod", started.name, {"metadata": {"annotations": {NOTE_ANNOTATION: FORGED[forged]}}})
    async with pod_hosts() as hosts:
        assert hosts.find_adopted() == {}
        await eventually(lambda: not pods(kube))
        await program_of(hosts).start()


async def test_a_pod_that_is_created_while_a_list_is_read_is_not_taken_for_gone(pod_hosts, kube):
    async with pod_hosts() as hosts:
        hosts.find_adopted()
        former = await program_of(hosts).start()
        hosts._take(ClusterEvent("LISTING"))
        later = await program_of(hosts, 1).start()
        hosts._take(ClusterEvent("LIST", ()))
        assert former.has_ended
        assert not later.has_ended


async def test_of_two_pods_of_one_replica_the_one_that_stays_is_adopted(pod_hosts, kube):
    async with pod_hosts() as hosts:
        former = await program_of(hosts).start()
        bind(kube, former.name)
        later = await program_of(hosts).start()
        kube.delete("Pod", former.name)
    async with pod_hosts() as hosts:
        ((_, running),) = hosts.find_adopted().values()
        assert running.name == later.name


async def test_pods_of_another_region_are_left_alone(pod_hosts, kube):
    async with pod_hosts() as hosts:
        hosts.find_adopted()
        started = await program_of(hosts).start()
        other = {
            "apiVersion": "v1",
            "kind": "Pod",
            **only(kube),
            "metadata": {"name": "other", "labels": {"ipnext.io/region": "south"}},
        }
        other.pop("status", None)
        kube.create(other)
        started.signal(SIGTERM)
        await started.wait()
        assert [pod["metadata"]["name"] for pod in pods(kube)] == ["other"]


async def test_a_note_that_is_too_large_for_an_annotation_is_kept_without_the_holds(pod_hosts, kube):
    held = HostedSnapshot(
        model="ranker",
        part="dense",
        engine="torch",
        snapshot=1,
        digest="d",
        uri="file:///d",
        generations=(1,),
        settings={"filler": "x" * LONGEST_NOTE},
    )
    async with pod_hosts() as hosts:
        started = await program_of(hosts).start()
        hosts.note(identity().name, note(identity(), stamp="large", sent=HostHolds(holds=(held,))))
        await hosts.wait_noted(identity().name)
        text = kube.get("Pod", started.name)["metadata"]["annotations"][NOTE_ANNOTATION]
        assert '"stamp":"large"' in text
        assert len(text) < LONGEST_NOTE


async def test_a_note_waits_for_an_api_server_that_is_away(pod_hosts, kube, server):
    async with pod_hosts(request_seconds=0.5) as hosts:
        started = await program_of(hosts).start()
        server.go_away()
        hosts.note(identity().name, note(identity(), stamp="late"))
        with pytest.raises(Unavailable, match=r"not written within 0\.5 s"):
            await hosts.wait_noted(identity().name)
        server.come_back()
        await eventually(lambda: "late" in kube.get("Pod", started.name)["metadata"]["annotations"][NOTE_ANNOTATION])


async def test_a_deletion_waits_for_an_api_server_that_is_away(pod_hosts, kube, server):
    async with pod_hosts() as hosts:
        started = await program_of(hosts).start()
        server.go_away()
        started.signal(SIGTERM)
        await asyncio.sleep(0)
        server.come_back()
        await started.wait()
        assert pods(kube) == []


async def test_what_happened_while_the_watch_was_cut_is_seen(pod_hosts, kube, server):
    async with pod_hosts() as hosts:
        started, other = await program_of(hosts).start(), await program_of(hosts, 1).start()
        server.refuse(500, verbs=("list", "watch"), plurals=("pods",))
        server.end_watches()
        kube.delete("Pod", started.name, {"gracePeriodSeconds": 0})
        server.expire()
        server.recover()
        await started.wait()
        report(kube, other.name, **RUNNING)
        await eventually(lambda: other.address)


async def test_a_watch_that_has_died_silently_is_opened_again(pod_hosts, kube, server):
    async with pod_hosts(silent_seconds=0.3) as hosts:
        started = await program_of(hosts).start()
        server.silence_watches()
        report(kube, started.name, **RUNNING)
        await eventually(lambda: started.address)


async def test_expired_versions_are_listed_again(pod_hosts, kube, server):
    async with pod_hosts() as hosts:
        started = await program_of(hosts).start()
        server.expire(running=True)
        report(kube, started.name, **RUNNING)
        await eventually(lambda: started.address)


async def test_a_pod_of_a_node_that_does_not_answer_is_given_up(pod_hosts, kube):
    async with pod_hosts(agent={"drain_seconds": 0, "grace_seconds": 0.5}, lost_seconds=0.01) as hosts:
        program = program_of(hosts)
        started = await program.start()
        bind(kube, started.name)
        started.signal(SIGTERM)
        assert await started.wait() == -SIGTERM.value
        assert "its node does not answer" in program.describe_end(-15)
        assert "deletionTimestamp" in only(kube)["metadata"]


async def test_a_replica_set_has_a_disruption_budget_as_long_as_it_has_replicas(pod_hosts, kube):
    async with pod_hosts() as hosts:
        hosts.keep_available(KEY, 3)
        await eventually(lambda: budgets(kube))
        (budget,) = budgets(kube)
        assert budget["spec"]["minAvailable"] == 2
        hosts.keep_available(KEY, 0)
        await eventually(lambda: not budgets(kube))


def budgets(kube):
    return kube.items("PodDisruptionBudget")


async def test_another_manager_of_a_budget_is_named_and_not_overruled(pod_hosts, kube, capsys):
    async with pod_hosts() as hosts:
        hosts.keep_available(KEY, 3)
        await eventually(lambda: budgets(kube))
        name = budgets(kube)[0]["metadata"]["name"]
        kube.merge("PodDisruptionBudget", name, {"spec": {"minAvailable": 1}}, fieldManager="an-operator")
        hosts.keep_available(KEY, 4)
        await eventually(lambda: "an-operator" in capsys.readouterr().out)
        assert budgets(kube)[0]["spec"]["minAvailable"] == 1


async def test_a_serving_host_is_shown_by_its_readiness_gate(pod_hosts, kube):
    async with pod_hosts() as hosts:
        started = await program_of(hosts).start()
        for serving, status in ((True, "True"), (False, "False")):
            hosts.show_serving(identity().name, serving=serving)
            await eventually(lambda status=status: gate(kube, started.name) == status)


def gate(kube, name):
    conditions = kube.get("Pod", name).get("status", {}).get("conditions", ())
    return next((each["status"] for each in conditions if each["type"] == SERVING_CONDITION), None)


async def test_a_cluster_that_does_not_answer_is_unavailable(pod_hosts, server):
    server.go_away()
    try:
        with pytest.raises(Unavailable, match=r"lists no pods of 'default' within 0\.2 s"):
            async with pod_hosts(agent={"confirm_seconds": 0.2}):
                pass
    finally:
        server.come_back()


async def test_an_unknown_field_of_a_template_is_refused_by_name(pod_hosts, tmp_path, kube):
    (tmp_path / "hardware.yaml").write_text("cpu: {spec: {nodeSelectr: {a: b}}}\n")
    async with pod_hosts() as hosts:
        with pytest.raises(OSError, match="nodeSelectr"):
            await program_of(hosts).start()
    with pytest.raises(Refused):
        kube.get("Pod", "any")
