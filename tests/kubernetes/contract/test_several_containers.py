"""Pods of several containers: their order, sidecars, restart policies, conditions and end."""

import uuid

import pytest

from tests.kubernetes.contract.objects import pod
from tests.kubernetes.contract.pods import SLEEP, logs, main, on, processes_of, state_of, status, until_running
from tests.kubernetes.rest_client import Refused
from tests.waiting import until

pytestmark = [pytest.mark.usefixtures("subprocesses", "listeners"), pytest.mark.allow_hosts(["127.0.0.0/8"])]


def noting(path, word, then="true"):
    """A command that notes a word in a file of the node, twice if it is asked to end."""
    return ["sh", "-c", f"trap 'echo {word}-end >> {path}; exit 0' TERM; echo {word} >> {path}; {then}"]


def waiting(path, word):
    return noting(path, word, "while :; do sleep 0.02; done")


def words(path):
    return path.read_text().split() if path.exists() else []


def condition(kube, kind):
    found = [each for each in status(kube).get("conditions") or () if each["type"] == kind]
    return found[0]["status"] if found else None


def test_initial_containers_run_one_by_one_before_the_others(kube, node, tmp_path):
    notes = tmp_path / "notes"
    inits = [main(noting(notes, "first"), name="first"), main(noting(notes, "second"), name="second")]
    kube.create(pod(**on(node, main(waiting(notes, "main"))), initContainers=inits))

    until_running(kube)
    until(lambda: words(notes) == ["first", "second", "main"], why=lambda: words(notes))
    assert [each["state"]["terminated"]["exitCode"] for each in status(kube)["initContainerStatuses"]] == [0, 0]
    assert condition(kube, "Initialized") == "True"


def test_an_initial_container_that_fails_is_repeated_first(kube, node, tmp_path):
    notes = tmp_path / "notes"
    init = main(["sh", "-c", f"echo x >> {notes}; test $(wc -l < {notes}) -ge 3"], name="init")
    kube.create(pod(**on(node, main(SLEEP)), initContainers=[init]))

    until_running(kube)
    assert status(kube)["initContainerStatuses"][0]["restartCount"] == 2
    assert len(words(notes)) == 3


def test_an_initial_container_that_fails_for_good_fails_its_pod(kube, node):
    init = main(["false"], name="init")
    kube.create(pod(**on(node, main(SLEEP)), initContainers=[init], restartPolicy="Never"))

    until(lambda: status(kube).get("phase") == "Failed", why=lambda: status(kube))
    assert state_of(kube, "main")["waiting"]["reason"] == "PodInitializing"
    assert condition(kube, "Initialized") == "False"


def test_a_sidecar_is_there_before_and_until_all_others_have_ended(kube, node, tmp_path):
    notes = tmp_path / "notes"
    gate = {"exec": {"command": ["test", "-e", str(tmp_path / "up")]}, "periodSeconds": 1, "failureThreshold": 9999}
    side = main(waiting(notes, "side"), name="side", restartPolicy="Always", startupProbe=gate)
    init = main(noting(notes, "init"), name="init")
    last = main(noting(notes, "main", f"while ! test -e {tmp_path}/done; do sleep 0.02; done"))
    kube.create(pod(**on(node, last), initContainers=[side, init], restartPolicy="Never"))

    until(lambda: words(notes) == ["side"])
    assert status(kube)["phase"] == "Pending"
    (tmp_path / "up").touch()
    until(lambda: words(notes) == ["side", "init", "main"], why=lambda: words(notes))
    (tmp_path / "done").touch()

    until(lambda: status(kube)["phase"] == "Succeeded", why=lambda: status(kube))
    assert words(notes) == ["side", "init", "main", "side-end"]


def test_sidecars_end_in_reverse_order_after_the_others(kube, node, tmp_path):
    notes = tmp_path / "notes"
    sides = [main(waiting(notes, name), name=name, restartPolicy="Always") for name in ("one", "two")]
    kube.create(pod(**on(node, main(waiting(notes, "main"))), initContainers=sides))
    until(lambda: set(words(notes)) == {"one", "two", "main"}, why=lambda: status(kube))

    kube.delete("Pod", "one")

    until(lambda: not kube.exists("Pod", "one"))
    assert words(notes)[3:] == ["main-end", "two-end", "one-end"]


def test_a_sidecar_that_ends_is_restarted_whatever_the_policy(kube, node, tmp_path):
    notes = tmp_path / "notes"
    side = main(["sh", "-c", f"echo x >> {notes}; test $(wc -l < {notes}) -ge 2 && exec sleep 1000; exit 0"])
    kube.create(
        pod(
            **on(node, main(SLEEP)),
            initContainers=[side | {"name": "side", "restartPolicy": "Always"}],
            restartPolicy="Never",
            terminationGracePeriodSeconds=1,
        )
    )

    until(lambda: len(words(notes)) == 2)
    until(lambda: status(kube)["initContainerStatuses"][0]["restartCount"] == 1)


def test_a_pod_is_ready_once_all_its_containers_are(kube, node, tmp_path):
    probe = {"exec": {"command": ["test", "-e", str(tmp_path / "fine")]}, "periodSeconds": 1, "failureThreshold": 1}
    kube.create(pod(**on(node, main(SLEEP), main(SLEEP, name="other", readinessProbe=probe))))
    until(lambda: "running" in state_of(kube, "other"))
    until(lambda: condition(kube, "ContainersReady") == "False")
    assert condition(kube, "Ready") == "False"

    (tmp_path / "fine").touch()
    until(lambda: condition(kube, "Ready") == "True")


def test_a_readiness_gate_is_opened_by_another_client(kube, node):
    kube.create(pod(**on(node, main(SLEEP)), readinessGates=[{"conditionType": "test.ipnext/told"}]))
    until(lambda: condition(kube, "ContainersReady") == "True")
    assert condition(kube, "Ready") == "False"

    for value in ("True", "False"):
        told = {"type": "test.ipnext/told", "status": value}
        kube.patch_strategic("Pod", "one", {"status": {"conditions": [told]}}, subresource="status")
        until(lambda value=value: condition(kube, "Ready") == value, why=lambda: status(kube))
    assert condition(kube, "ContainersReady") == "True"


@pytest.mark.parametrize(("codes", "phase"), [((0, 0), "Succeeded"), ((0, 3), "Failed")])
def test_a_pod_without_restarts_ends_with_all_its_containers(kube, node, codes, phase):
    several = [main(["sh", "-c", f"exit {code}"], name=f"c{n}") for n, code in enumerate(codes)]
    kube.create(pod(**on(node, *several), restartPolicy="Never"))

    until(lambda: status(kube).get("phase") == phase, why=lambda: status(kube))
    found = status(kube)["containerStatuses"]
    assert tuple(each["state"]["terminated"]["exitCode"] for each in found) == codes
    assert found[-1]["state"]["terminated"]["reason"] == ("Completed" if codes[-1] == 0 else "Error")


def test_each_container_has_a_log_of_its_own(kube, node):
    several = [main(["sh", "-c", f"echo {name}1; echo {name}2; exec sleep 1000"], name=name) for name in ("a", "b")]
    kube.create(pod(**on(node, *several), terminationGracePeriodSeconds=1))
    until(lambda: "running" in state_of(kube, "b"))

    until(lambda: logs(kube, container="b") == "b1\nb2\n")
    assert logs(kube, container="a", tailLines="1") == "a2\n"
    assert logs(kube, container="a", tailLines="0") == ""
    with pytest.raises(Refused, match="container name must be specified"):
        kube.send("GET", kube.path("Pod", "one", "log"))
    with pytest.raises(Refused, match="container c is not valid"):
        kube.send("GET", kube.path("Pod", "one", "log"), container="c")


def test_the_log_of_the_run_before_is_kept(kube, node, tmp_path):
    script = f"if test -e {tmp_path}/ran; then echo second; exec sleep 1000; fi; touch {tmp_path}/ran; echo first"
    kube.create(pod(**on(node, main(["sh", "-c", script])), terminationGracePeriodSeconds=1))

    until(lambda: logs(kube) == "second\n")
    assert logs(kube, previous="true") == "first\n"


def test_a_pod_that_is_deleted_by_force_is_gone_at_once_with_its_processes(kube, node):
    word = uuid.uuid4().hex
    stubborn = ["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]
    kube.create(pod(**on(node, main(stubborn, env=[{"name": "WORD", "value": word}]))))
    until_running(kube)

    kube.delete("Pod", "one", gracePeriodSeconds=0)

    assert not kube.exists("Pod", "one")
    until(lambda: not processes_of(word))


def test_a_pod_of_a_taint_that_it_does_not_tolerate_is_deleted(kube, node):
    tolerated = {"key": "test.ipnext/away", "operator": "Exists"}
    kube.create(pod("one", **on(node, main(SLEEP))))
    kube.create(pod("two", **on(node, main(SLEEP), tolerations=[tolerated])))
    for name in ("one", "two"):
        until_running(kube, name)

    before = kube.get("Node", node)["spec"].get("taints") or []
    taint = {"key": "test.ipnext/away", "effect": "NoExecute"}
    kube.merge("Node", node, {"spec": {"taints": [*before, taint]}})

    try:
        until(lambda: not kube.exists("Pod", "one"))
        assert "deletionTimestamp" not in kube.get("Pod", "two")["metadata"]
    finally:
        kube.merge("Node", node, {"spec": {"taints": before}})
