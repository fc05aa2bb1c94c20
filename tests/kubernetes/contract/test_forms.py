"""The form in which objects are served: what is empty, and which text a quantity has."""

import pytest

from tests.kubernetes.contract.objects import config_map, deployment, managers
from tests.kubernetes.rest_client import Refused

EMPTY = {"args": [], "command": [], "env": [{"name": "A", "value": ""}], "ports": [], "volumeMounts": []}


def container(made):
    return made["spec"]["template"]["spec"]["containers"][0]


def test_an_empty_map_list_or_text_is_no_field(kube):
    made = kube.create(deployment(replicas=0, **EMPTY))

    assert not {"args", "command", "ports", "volumeMounts"} & set(container(made))
    assert container(made)["env"] == [{"name": "A"}]
    assert "data" not in kube.create(config_map())


def test_an_empty_structure_is_a_field(kube):
    volumes = [{"name": "work", "emptyDir": {}}]
    made = deployment(replicas=0, resources={}, securityContext={})
    made["spec"]["template"]["spec"]["volumes"] = volumes

    made = kube.create(made)

    assert (container(made)["resources"], container(made)["securityContext"]) == ({}, {})
    assert made["spec"]["template"]["spec"]["volumes"] == volumes


def test_an_empty_text_of_a_map_is_an_entry(kube):
    assert kube.create(config_map(color=""))["data"] == {"color": ""}


def test_an_applied_empty_map_has_an_owner_but_is_no_field(kube):
    made = kube.apply(config_map(), "ours")

    assert "data" not in made
    assert managers(made) == {"ours/Apply": {"f:data": {}}}
    with pytest.raises(Refused) as refused:
        kube.apply(config_map(), "theirs")
    assert [each["field"] for each in refused.value.causes] == [".data"]


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("0.5", "500m"),
        ("500m", "500m"),
        ("1000m", "1"),
        (2, "2"),
        (0.25, "250m"),
        ("0", "0"),
        ("0Gi", "0"),
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        ("512", "512"),
        ("1000", "1k"),
        ("1500000", "1500k"),
        ("512Ki", "512Ki"),
        ("0.5Ki", "512"),
        ("1e3", "1e3"),
        ("100E", "100E"),
    ],
)
def test_a_quantity_has_one_text(kube, given, served):
    made = kube.create(deployment(replicas=0, resources={"limits": {"memory": given}}))

    assert container(made)["resources"]["limits"]["memory"] == served


@pytest.mark.parametrize("given", ["1x", "much", "1 Gi", "--1"])
def test_a_quantity_is_a_number_with_a_suffix(kube, given):
    with pytest.raises(Refused) as refused:
        kube.create(deployment(replicas=0, resources={"limits": {"memory": given}}))
    assert refused.value.code == 400


def test_a_quantity_in_another_text_is_no_change(kube):
    first = kube.apply(deployment(replicas=0, resources={"limits": {"cpu": "0.5"}}), "ours")

    again = kube.apply(deployment(replicas=0, resources={"limits": {"cpu": "500m"}}), "ours")

    assert again["metadata"]["generation"] == first["metadata"]["generation"]
