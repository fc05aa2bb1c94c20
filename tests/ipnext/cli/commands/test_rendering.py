"""`ipnext render`: what would run for a manifest. Targets by entry points; objects of a cluster."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from ipnext.cli.app import app
from ipnext.cli.commands import rendering

EXAMPLES = Path(__file__).parents[4] / "examples"
WHOLE = {
    "name": "whole",
    "hardware": [{"kind": "cpu", "units": 1, "qps": 10}, {"kind": "l4", "units": 1, "qps": 90}],
    "minReplicas": 2,
}
MODEL = {
    "apiVersion": "ipnext/v1",
    "kind": "Model",
    "metadata": {"name": "ranker"},
    "spec": {"parts": [WHOLE], "demand": [{"region": "north", "qps": 5}]},
}


def run(*arguments):
    return CliRunner().invoke(app, ["render", *map(str, arguments)])


def documents(*arguments):
    shown = run(*arguments, "--target", "kubernetes")
    assert shown.exit_code == 0, shown.output
    return list(yaml.safe_load_all(shown.stdout))


@pytest.fixture
def manifest(tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text(yaml.safe_dump(MODEL))
    return file


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("IMAGE", "HARDWARE_FILE", "CERTIFICATE_SECRET", "POD_TEMPLATE_FILE"):
        monkeypatch.delenv(f"IPNEXT_KUBERNETES_{name}", raising=False)


def test_documents_on_stdout_are_what_json_says_and_valid(manifest):
    found = documents("-f", manifest)
    assert found == json.loads(run("-f", manifest, "--target", "kubernetes", "-o", "json").stdout)
    for each in found:
        kubernetes_validate.validate(each, "1.34", strict=True)


def test_long_values_stay_on_their_lines(manifest, monkeypatch):
    monkeypatch.setenv("IPNEXT_KUBERNETES_IMAGE", image := "registry.example/" + "x" * 900)
    assert documents(manifest)[0]["spec"]["containers"][0]["image"] == image


def test_each_part_has_its_fewest_replicas_on_each_hardware_kind(manifest):
    found = documents("-f", manifest, "--region", "north")
    labels = [each["metadata"]["labels"] for each in found]
    assert [(each["kind"], label["ipnext.io/hardware"]) for each, label in zip(found, labels, strict=True)] == [
        *[("Pod", "cpu")] * 2,
        ("PodDisruptionBudget", "cpu"),
        *[("Pod", "l4")] * 2,
        ("PodDisruptionBudget", "l4"),
    ]
    assert {label["ipnext.io/region"] for label in labels} == {"north"}
    assert len({each["metadata"]["name"] for each in found}) == len(found)


@pytest.fixture
def hardware(tmp_path, monkeypatch):
    file = tmp_path / "hardware.yaml"
    monkeypatch.setenv("IPNEXT_KUBERNETES_HARDWARE_FILE", str(file))
    return file


def test_hardware_kinds_of_the_agents_file_are_rendered(manifest, hardware):
    hardware.write_text("cpu: {}\nl4: {spec: {nodeSelector: {accelerator: l4}}}\n")
    selectors = [each["spec"].get("nodeSelector") for each in documents(manifest) if each["kind"] == "Pod"]
    assert selectors == [None, None, *[{"accelerator": "l4"}] * 2]


def test_a_kind_that_the_file_lacks_is_named(manifest, hardware):
    hardware.write_text("cpu: {}\n")
    refused = run(manifest, "--target", "kubernetes")
    assert refused.exit_code == 2
    assert "parts.whole.hardware: 'l4' has no entry" in refused.stderr
    assert "allowed: cpu" in refused.stderr


def test_a_part_that_cannot_run_in_pods_is_named():
    refused = run(EXAMPLES / "chat-cpu.yaml", "--target", "kubernetes")
    assert refused.exit_code == 2
    assert "parts.llm.engine: vllm does not run in pods yet" in refused.stderr


@pytest.mark.parametrize("count", [0, 2])
def test_one_manifest_is_given(manifest, count):
    refused = run(*[manifest, "-f", manifest][: count + count // 2])
    assert refused.exit_code == 2
    assert f"file: give one manifest, as MODEL.yaml or with -f, got {count}" in refused.stderr


def test_an_unknown_target_is_refused_with_the_known_ones(manifest):
    refused = run(manifest, "--target", "nomad")
    assert refused.exit_code == 2
    assert "--target: 'nomad' is not known; allowed: kubernetes, vllm" in refused.stderr


def test_a_target_that_cannot_be_imported_says_what_to_install(manifest, monkeypatch):
    broken = EntryPoint("broken", "no_such_module:render", "ipnext.render_targets")
    monkeypatch.setattr(rendering, "entry_points", lambda **_: [broken])
    refused = run(manifest, "--target", "broken")
    assert refused.exit_code == 2
    assert "No module named 'no_such_module'" in refused.stderr
    assert "pip install 'ipnext[platform]'" in refused.stderr


def test_the_template_of_all_pods_is_rendered_without_a_file_of_kinds(manifest, tmp_path, monkeypatch):
    (tmp_path / "pod.yaml").write_text("metadata: {labels: {team: ads}}\n")
    monkeypatch.setenv("IPNEXT_KUBERNETES_POD_TEMPLATE_FILE", str(tmp_path / "pod.yaml"))
    assert documents(manifest)[0]["metadata"]["labels"]["team"] == "ads"


def test_a_region_that_is_no_name_is_refused(manifest):
    refused = run(manifest, "--target", "kubernetes", "--region", "Bad,Region")
    assert refused.exit_code == 2
    assert "--region: must be a name" in refused.stderr
    assert "'Bad,Region'" in refused.stderr


def test_a_manifest_that_is_not_there_is_named(tmp_path):
    refused = run(tmp_path / "none.yaml")
    assert refused.exit_code == 2
    assert "none.yaml can't be read" in refused.stderr
