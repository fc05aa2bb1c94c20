"""examples/fairness-audit: a package installed into the workers' environment adds a stage and a check."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from activities.validation.validator import discover_validators
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.parser import parse_manifest
from ipnext.stages.kinds import StageKinds

EXAMPLE = Path(__file__).parents[3] / "examples" / "fairness-audit"


@pytest.fixture
def installed(tmp_path, monkeypatch, house):
    """The package, as pip installs it, for this process and those that it starts."""
    target = tmp_path / "installed"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(EXAMPLE)]
    subprocess.run(command, check=True)
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.setenv("PYTHONPATH", f"{target}:{Path(__file__).parents[3]}")
    monkeypatch.setenv("IPNEXT_ARTIFACTS_URI", f"file://{house.root}/artifacts")
    importlib.invalidate_caches()


@pytest.fixture
async def workers(installed, serving):
    async with serving(stages=StageKinds(), validators=discover_validators()):
        yield


@pytest.fixture
def export(tmp_path):
    """Export a ranker with the example's script; without a replay set if that is asked for."""
    main = runpy.run_path(str(EXAMPLE / "export.py"))["main"]

    def call(name, bias):
        main(str(tmp_path / name), bias)
        return tmp_path / name

    return call


@pytest.fixture
def publish(house, model, carried_out):
    async def call(directory):
        source = ingest_directory(house.artifacts, directory)
        with house.store.begin() as repository:
            change = repository.publish(model, {"ranker": source}, change_id=f"{model}-{directory.name}")
        return await carried_out(change)

    return call


@pytest.mark.usefixtures("workers")
async def test_a_biased_ranker_is_refused_with_its_figures_and_a_fair_one_serves(house, model, export, publish):
    document = yaml.safe_load((EXAMPLE / "model.yaml").read_text())
    document["metadata"]["name"] = model
    with house.store.begin() as repository:
        repository.put_model(parse_manifest(document), expected_version=None)

    biased = await publish(export("biased", 1.0))
    assert (biased.state, biased.reason) == (ChangeState.REFUSED, Reason.STAGE_REFUSED), biased.message
    assert biased.message.startswith("stage fairness-audit: mean score of segment=1 is 0.")
    with house.store.read() as repository:
        checks = {check.check: check for check in repository.report(model, 1).checks}
    assert checks["fairness-replay"].passed
    evidence = checks["stage.fairness-audit"].evidence
    assert [group["rows"] for group in evidence["groups"].values()] == [200, 200]
    assert evidence["gap"] > evidence["maxGap"] == 0.05
    assert checks["stage.fairness-audit"].source == "fairness-audit 1.0 (fairness_audit.stage:stage)"

    fair = await publish(export("fair", 0.0))
    assert fair.state is ChangeState.DONE, fair.message
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
