"""The objects of deploy/kubernetes: valid, and of least privilege."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from ipnext.infra.kubernetes.documents import SERVING_CONDITION
from tests.ipnext.infra.kubernetes.samples import KEY, identity, note
from tests.waiting import eventually

AGENT = Path(__file__).parents[4] / "deploy" / "kubernetes" / "agent"
DOCUMENTS = {
    f"{found['kind']} {found['metadata']['name']}": found
    for file in ("account.yaml", "role.yaml", "agent.yaml")
    for found in yaml.safe_load_all((AGENT / file).read_text())
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_object_is_valid(name):
    kubernetes_validate.validate(DOCUMENTS[name], "1.34", strict=True)


def test_all_files_are_resources():
    kustomization = yaml.safe_load((AGENT / "kustomization.yaml").read_text())
    assert {*kustomization["resources"], "hardware.yaml", "kustomization.yaml"} == {
        file.name for file in AGENT.iterdir()
    }


def test_the_agent_runs_without_rights_on_its_node():
    spec = DOCUMENTS["StatefulSet ipnext-agent"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.fixture
def least(server, kube):
    """A token with the rights of an agent's role and no others."""
    kube.create(DOCUMENTS["Role ipnext-agent"])
    kube.create(
        DOCUMENTS["RoleBinding ipnext-agent"] | {"subjects": [{"kind": "User", "name": "agent", "apiGroup": RBAC}]}
    )
    return server.admit("agent")


RBAC = "rbac.authorization.k8s.io"


async def test_the_role_of_the_agent_is_enough(pod_hosts, server, kube, tmp_path, least):
    config = tmp_path / "least"
    config.write_text(yaml.safe_dump(server.kubeconfig(token=least)))
    of = identity()
    async with pod_hosts(kubeconfig_file=config) as hosts:
        hosts.find_adopted()
        started = await hosts.program(of, lambda: note(of)).start()
        hosts.note(of.name, note(of, stamp="kept"))
        await hosts.wait_noted(of.name)
        hosts.keep_available(KEY, 2)
        hosts.show_serving(of.name, serving=True)
        await eventually(lambda: kube.items("PodDisruptionBudget") and serves(kube, started.name))
        kube.merge("Pod", started.name, {"status": {"phase": "Failed"}}, "status")
        await started.wait()
        await eventually(lambda: not kube.items("Pod"))
        hosts.keep_available(KEY, 0)
        await eventually(lambda: not kube.items("PodDisruptionBudget"))


def serves(kube, name):
    conditions = kube.get("Pod", name).get("status", {}).get("conditions", ())
    return any(each["type"] == SERVING_CONDITION and each["status"] == "True" for each in conditions)


@pytest.mark.parametrize("lacking", ["pods", "pods/status", "poddisruptionbudgets"])
async def test_every_rule_of_the_role_is_needed(pod_hosts, server, kube, tmp_path, lacking, least, capsys):
    rules = [rule for rule in DOCUMENTS["Role ipnext-agent"]["rules"] if lacking not in rule["resources"]]
    kube.merge("Role", "ipnext-agent", {"rules": rules})
    config = tmp_path / "less"
    config.write_text(yaml.safe_dump(server.kubeconfig(token=least)))
    said = []

    def refused():
        said.append(capsys.readouterr().out)
        return "403" in "".join(said)

    if lacking == "pods":
        with pytest.raises(Exception, match="lists no pods"):
            async with pod_hosts(agent={"confirm_seconds": 0.5}, kubeconfig_file=config):
                pass
        return
    of = identity()
    async with pod_hosts(kubeconfig_file=config) as hosts:
        await hosts.program(of, lambda: note(of)).start()
        hosts.keep_available(KEY, 2)
        hosts.show_serving(of.name, serving=True)
        await eventually(refused)
