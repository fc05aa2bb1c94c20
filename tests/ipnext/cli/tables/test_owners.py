"""Owners on the command line, as a user reads them."""

import json
import re

import pytest
import yaml

OWNER = """
apiVersion: ipnext/v1
kind: Owner
metadata: {name: search}
spec:
  description: ranking
  members: [{subject: "group:ml", role: publisher}]
  quotas: {models: MODELS, units: {cpu: 8}}
  priority: 3
"""


@pytest.fixture(autouse=True)
def fleet(live):
    live.rooms.seed()


@pytest.fixture
def write(live):
    def write(text):
        file = live.rooms.directory / "manifest.yaml"
        file.write_text(text)
        return file

    return write


def model(live, name):
    return yaml.safe_dump(live.rooms.model_document(name))


def test_an_owner_is_applied_with_its_models_listed_and_described(run, write, live):
    assert "would be applied" in run("apply", "-f", write(OWNER.replace("MODELS", "1")), "--dry-run").stdout
    assert json.loads(run("get", "owners", "-o", "json").stdout) == []
    both = write(model(live, "ranker") + "---" + OWNER.replace("MODELS", "1"))
    assert re.search(r"owner +search +1 +applied", run("apply", "-f", both).stdout)
    assert re.search(r"search +3 +1 of 1 +1 +-", run("get", "owners").stdout)
    described = run("describe", "owner", "search").stdout
    assert "owner search, version 1, priority 3: ranking" in described
    assert re.search(r"group:ml +publisher", described)
    assert re.search(r"units.cpu +2 +8 +0", described)
    assert re.search(r"requestsPerSecond +10 +no limit", described)
    assert "models without spec.budgetPerHour, which count 0 $/h: 1" in described


def test_a_model_beyond_a_quota_is_refused_in_one_line(run, write, live):
    run("apply", "-f", write(OWNER.replace("MODELS", "0")))
    refused = run("apply", "-f", write(model(live, "ranker")), status=2)
    assert "metadata.owner: one more model; owner 'search' uses 0 of 0 models in its other models" in refused.output


def test_a_quota_below_what_is_used_says_so_and_an_owner_with_models_is_not_deleted(run, write, live):
    run("apply", "-f", write(model(live, "ranker")))
    assert (
        "owner search: quotas.models: 0 is below the 1"
        in run("apply", "-f", write(OWNER.replace("MODELS", "0"))).stderr
    )
    assert re.search(r"search +3 +1 of 0 +1 +models", run("get", "owners").stdout)
    assert "still has models: ranker" in run("delete", "owner", "search", status=2).output
    with live.rooms.store.begin() as unit:
        unit.update_model("ranker", retired=True)
    assert "still has models: ranker (retired); give them another" in run("delete", "owner", "search", status=2).output
    document = live.rooms.model_document("ranker")
    document["metadata"]["owner"] = "ads"
    run("apply", "-f", write(yaml.safe_dump(document)))
    assert "owner search is deleted" in run("delete", "owner", "search").stdout
    assert "owner 'search' is not known" in run("describe", "owner", "search", status=2).output
    assert "allowed: MODEL, owner NAME" in run("delete", "plan", "x", status=2).output
