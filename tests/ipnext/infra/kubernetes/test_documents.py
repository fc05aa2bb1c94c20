"""Pods as documents: valid for Kubernetes, of least privilege, and with what the operator adds."""

from copy import deepcopy

import kubernetes_validate
import pytest

from ipnext.errors import InvalidInput
from ipnext.infra.kubernetes.documents import (
    PodTemplates,
    host_paths,
    merge,
    name_budget,
    name_pod,
    read_templates,
    render_budget,
    render_pod,
)
from ipnext.infra.kubernetes.settings import kubernetes_settings
from ipnext.infra.region_commands import HostPaths
from tests.ipnext.infra.kubernetes.samples import (
    KEY,
    host_pod,
    identity,
    kubernetes_settings_of,
    region_context,
)

VERSION = "1.34"
GPU = {
    "spec": {
        "nodeSelector": {"accelerator": "l4"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "runtimeClassName": "nvidia",
        "containers": [
            {"name": "host", "image": "ipnext-gpu:1", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
        ],
    }
}


@pytest.fixture
def render(tmp_path):
    def render(pod=None, templates=None, **settings):
        templates = templates or PodTemplates(by_hardware={"cpu": {}, "l4": GPU})
        return render_pod(pod or host_pod(), kubernetes_settings_of(tmp_path, **settings), templates)

    return render


def containers(document):
    spec = document["spec"]
    return {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}


@pytest.mark.parametrize(
    "settings",
    [{}, {"store_secret": "store", "cache_path": "/var/lib/ipnext", "service_account": "host", "user": 0}],
    ids=["least", "most"],
)
@pytest.mark.parametrize("hardware", ["cpu", "l4"])
def test_a_pod_is_valid(render, settings, hardware):
    document = render(host_pod(identity(hardware=hardware)), **settings)
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_a_disruption_budget_is_valid():
    kubernetes_validate.validate(render_budget(KEY, 3), VERSION, strict=True)


@pytest.mark.parametrize(("replicas", "available"), [(1, 1), (2, 1), (5, 4)])
def test_a_node_drain_leaves_all_replicas_but_one_and_never_takes_the_only_one(replicas, available):
    assert render_budget(KEY, replicas)["spec"]["minAvailable"] == available


def test_a_budget_counts_the_pods_of_its_replica_set(render):
    labels = render()["metadata"]["labels"]
    assert render_budget(KEY, 1)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    other = render_budget(KEY.model_copy(update={"part": "sparse"}), 1)
    assert not other["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_a_host_has_neither_the_private_key_nor_a_token(render):
    document = render()
    of_host = {each["name"] for each in containers(document)["host"]["volumeMounts"]}
    of_proxy = {each["name"] for each in containers(document)["proxy"]["volumeMounts"]}
    assert "certificate" in of_proxy - of_host
    assert "proxy" in of_proxy - of_host
    assert document["spec"]["automountServiceAccountToken"] is False


def test_all_containers_are_confined(render):
    document = render()
    assert document["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in containers(document).values():
        confinement = container["securityContext"]
        assert confinement["readOnlyRootFilesystem"] is True
        assert confinement["allowPrivilegeEscalation"] is False
        assert confinement["capabilities"] == {"drop": ["ALL"]}


def test_the_proxy_starts_before_the_host_and_ends_after_it(render):
    (proxy,) = render()["spec"]["initContainers"]
    assert (proxy["name"], proxy["restartPolicy"]) == ("proxy", "Always")
    assert "startupProbe" in proxy


def test_memory_is_requested_and_limited_if_it_is_known(render):
    assert containers(render())["host"]["resources"] == {
        "requests": {"cpu": "1", "memory": str(2**30)},
        "limits": {"memory": str(2**30)},
    }
    unlimited = containers(render(host_pod(memory_bytes=None)))["host"]["resources"]
    assert unlimited == {"requests": {"cpu": "1"}}


def test_a_hardware_kind_adds_to_the_pod_and_keeps_what_a_host_needs(render):
    document = render(host_pod(identity(hardware="l4")))
    host = containers(document)["host"]
    assert document["spec"]["nodeSelector"] == {"accelerator": "l4"}
    assert document["spec"]["runtimeClassName"] == "nvidia"
    assert host["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": str(2**30)}
    assert len(host["volumeMounts"]) == 3


def test_a_hardware_kind_may_have_an_image_of_its_own(render):
    document = render(host_pod(identity(hardware="l4")))
    assert containers(document)["host"]["image"] == "ipnext-gpu:1"
    assert containers(document)["proxy"]["image"] == "ipnext:1"


def test_replicas_are_spread_over_nodes_unless_a_template_says_otherwise(render):
    (spread,) = render()["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= render()["metadata"]["labels"].items()
    own = {"spec": {"topologySpreadConstraints": []}}
    templates = PodTemplates(common=own, by_hardware={"cpu": {}})
    assert render(templates=templates)["spec"]["topologySpreadConstraints"] == []


@pytest.mark.parametrize(
    "field",
    [
        {"spec": {"automountServiceAccountToken": True}},
        {"spec": {"restartPolicy": "Always"}},
        {"metadata": {"labels": {"ipnext.io/region": "other"}}},
        {"spec": {"containers": [{"name": "host", "command": ["sh"]}]}},
    ],
)
def test_a_template_does_not_replace_what_the_agent_depends_on(render, field):
    assert render(templates=PodTemplates(common=field, by_hardware={"cpu": {}})) == render()


def test_documents_are_merged_by_names_and_left_as_they_were():
    base = {"spec": {"volumes": [{"name": "a", "emptyDir": {}}], "hostNetwork": True, "args": ["1"]}}
    more = {"spec": {"volumes": [{"name": "b", "emptyDir": {}}, {"name": "a", "x": 1}], "args": ["2"]}}
    before = deepcopy((base, more))
    assert merge(base, more) == {
        "spec": {
            "volumes": [{"name": "a", "emptyDir": {}, "x": 1}, {"name": "b", "emptyDir": {}}],
            "hostNetwork": True,
            "args": ["2"],
        }
    }
    assert (base, more) == before


@pytest.mark.parametrize("letters", [1, 20, 63])
def test_names_fit_into_dns_and_differ_between_replicas_and_starts(letters):
    name = "m" * letters
    one, other = (identity(number, model=name, part=name) for number in (0, 1))
    names = [name_pod(one, "a1b2c3"), name_pod(one, "ffffff"), name_pod(other, "a1b2c3")]
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 63
    assert len(name_budget(one.key)) <= 63


def test_the_command_of_a_host_names_places_of_its_pod(tmp_path):
    paths = host_paths(kubernetes_settings_of(tmp_path, python="/opt/python", store_secret="store"))
    command = region_context(tmp_path).host_command("one", "unix:///run/ipnext/host", paths=paths)
    assert command[0] == "/opt/python"
    assert str(tmp_path) not in " ".join(command)
    assert "/var/cache/ipnext" in command
    assert command[command.index("--store-environment") + 1] == "/etc/ipnext/store/environment.json"


def test_a_host_without_a_secret_is_given_no_file_of_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    paths = HostPaths(python="python", cache=tmp_path, store_environment=None)
    command = region_context(tmp_path).host_command("one", "unix:///run/ipnext/host", paths=paths)
    assert "--store-environment" not in command


def test_templates_are_read(tmp_path):
    (tmp_path / "hardware.yaml").write_text("cpu:\nl4: {spec: {nodeSelector: {accelerator: l4}}}\n")
    (tmp_path / "pod.yaml").write_text("metadata: {labels: {team: ads}}\n")
    templates = read_templates(kubernetes_settings_of(tmp_path, pod_template_file=tmp_path / "pod.yaml"))
    assert templates.of("cpu") == {"metadata": {"labels": {"team": "ads"}}}
    assert templates.of("l4")["spec"]["nodeSelector"] == {"accelerator": "l4"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("- cpu\n", r"HARDWARE_FILE: .*must be a mapping"),
        ("cpu: 3\n", r"HARDWARE_FILE: .*cpu: must be parts of a pod, got 3"),
        ("{", r"HARDWARE_FILE: .*can't be read as YAML"),
        ("cpu: {metadata: {annotations: {built: 2026-01-01}}}", r"HARDWARE_FILE: .*date is not JSON serializable"),
    ],
)
def test_an_unfit_file_of_hardware_kinds_is_named(tmp_path, content, match):
    settings = kubernetes_settings_of(tmp_path)
    settings.hardware_file.write_text(content)
    with pytest.raises(InvalidInput, match=match):
        read_templates(settings)


def test_a_missing_template_is_named(tmp_path):
    settings = kubernetes_settings_of(tmp_path, pod_template_file=tmp_path / "none.yaml")
    with pytest.raises(InvalidInput, match=r"POD_TEMPLATE_FILE: .*none\.yaml"):
        read_templates(settings)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("IMAGE", "", r"IPNEXT_KUBERNETES_IMAGE"),
        ("PORT", "70000", r"IPNEXT_KUBERNETES_PORT: .*65536, got '70000'"),
        ("IMAGE", None, r"IPNEXT_KUBERNETES_IMAGE: Field required"),
    ],
)
def test_an_unfit_setting_is_named(monkeypatch, name, value, match):
    given = {"IMAGE": "ipnext:1", "HARDWARE_FILE": "kinds.yaml", "CERTIFICATE_SECRET": "hosts", name: value}
    for key, text in given.items():
        if text is None:
            monkeypatch.delenv(f"IPNEXT_KUBERNETES_{key}", raising=False)
        else:
            monkeypatch.setenv(f"IPNEXT_KUBERNETES_{key}", text)
    with pytest.raises(InvalidInput, match=match):
        kubernetes_settings()
