"""`dryRun=All`: the answer of a write without the write."""

import pytest

from tests.kubernetes.contract.objects import config_map, deployment
from tests.kubernetes.rest_client import Refused


def test_a_creation_answers_and_leaves_nothing(kube):
    answer = kube.create(deployment(replicas=0), dryRun="All")

    assert answer["spec"]["strategy"]["type"] == "RollingUpdate"
    assert not kube.exists("Deployment", "web")


def test_an_apply_shows_what_would_change(kube):
    before = kube.apply(config_map(color="red", size="1"), "ours")

    answer = kube.apply(config_map(color="blue"), "ours", dryRun="All")

    assert answer["data"] == {"color": "blue"}
    assert kube.get("ConfigMap", "settings") == before


def test_an_apply_without_a_difference_answers_the_object(kube):
    before = kube.apply(deployment(replicas=0), "ours")

    answer = kube.apply(deployment(replicas=0), "ours", dryRun="All")

    assert answer["spec"] == before["spec"]
    assert answer["metadata"]["generation"] == before["metadata"]["generation"]


def test_a_conflict_is_seen_beforehand(kube):
    kube.apply(config_map(color="red"), "ours")

    with pytest.raises(Refused) as refused:
        kube.apply(config_map(color="blue"), "theirs", dryRun="All")
    assert refused.value.causes[0]["field"] == ".data.color"


def test_a_deletion_deletes_nothing(kube):
    kube.create(config_map())

    kube.delete("ConfigMap", "settings", dryRun="All")

    assert kube.exists("ConfigMap", "settings")


def test_a_replacement_replaces_nothing(kube):
    made = kube.create(config_map(color="red"))

    assert kube.replace(made | {"data": {"color": "blue"}}, dryRun="All")["data"] == {"color": "blue"}
    assert kube.get("ConfigMap", "settings") == made
