"""Service accounts: each namespace has one, pods get its token, and tokens are made on request."""

import base64

import httpx2
import pytest
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User

from tests.kubernetes.contract.objects import pod
from tests.kubernetes.rest_client import Refused, RestClient, open_http
from tests.waiting import until

PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def account(name, **fields):
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}, **fields}


def unplaced(**fields):
    return pod(nodeSelector={"test.ipnext/node": "none"}, **fields)


def token_request(kube, name, **spec):
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return kube.send("POST", kube.path("ServiceAccount", name, "token"), body)


def account_mounts(made):
    return [each for each in made["spec"]["containers"][0].get("volumeMounts") or () if each["mountPath"] == PATH]


def until_furnished(kube):
    until(lambda: kube.exists("ServiceAccount", "default") and kube.exists("ConfigMap", "kube-root-ca.crt"))


def test_a_namespace_has_an_account_and_the_authority_of_the_server(kube):
    until_furnished(kube)

    assert "BEGIN CERTIFICATE" in kube.get("ConfigMap", "kube-root-ca.crt")["data"]["ca.crt"]


def test_a_pod_gets_a_volume_with_the_token_of_its_account(kube):
    until_furnished(kube)
    made = kube.create(unplaced())

    assert made["spec"]["serviceAccountName"] == "default"
    (mount,) = account_mounts(made)
    (volume,) = [each for each in made["spec"]["volumes"] if each["name"] == mount["name"]]
    assert {key for each in volume["projected"]["sources"] for key in each} == {
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    }


@pytest.mark.parametrize("of_account", [True, False])
def test_a_pod_or_its_account_can_decline_the_token(kube, of_account):
    until_furnished(kube)
    kube.create(account("quiet", **({"automountServiceAccountToken": False} if of_account else {})))

    made = kube.create(
        unplaced(serviceAccountName="quiet", **({} if of_account else {"automountServiceAccountToken": False}))
    )

    assert not account_mounts(made)


def test_a_pod_of_an_unknown_account_is_refused(kube):
    with pytest.raises(Refused) as refused:
        kube.create(unplaced(serviceAccountName="nobody"))

    assert (refused.value.code, refused.value.reason) == (403, "Forbidden")
    assert 'serviceaccount "nobody" not found' in refused.value.message


def test_a_requested_token_is_that_of_the_account(kube, config):
    kube.create(account("agent"))
    found = token_request(kube, "agent", expirationSeconds=600)

    assert found["status"]["expirationTimestamp"]
    context = config.get()
    cluster = Cluster(server=context.cluster.server, certificate_auth_data=context.cluster.certificate_auth_data)
    user = User(token=found["status"]["token"])
    with open_http(KubeConfig.from_one(cluster=cluster, user=user)) as http, pytest.raises(Refused) as refused:
        RestClient(http, kube.namespace).items("Secret")
    assert f"system:serviceaccount:{kube.namespace}:agent" in refused.value.message


def test_a_token_lasts_ten_minutes_or_longer(kube):
    kube.create(account("agent"))
    with pytest.raises(Refused) as refused:
        token_request(kube, "agent", expirationSeconds=599)
    assert refused.value.code == 422


def test_there_is_no_token_of_an_unknown_account(kube):
    with pytest.raises(Refused) as refused:
        token_request(kube, "nobody")
    assert refused.value.code == 404


def test_the_server_is_trusted_by_its_authority_only(config):
    context = config.get()
    assert context.cluster.server.startswith("https://")
    assert b"BEGIN CERTIFICATE" in base64.b64decode(context.cluster.certificate_auth_data)
    with httpx2.Client(trust_env=False) as stranger, pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY"):
        stranger.get(f"{context.cluster.server}/livez")
