"""Lists of models, owners and sources, filtered by labels, at the API and on the command line."""

import json

import httpx
import pytest
from typer.testing import CliRunner

from ipnext.cli import app


@pytest.fixture
def labelled(rooms):
    """The ranker with a label and a source, and an owner with the same label."""
    document = rooms.model_document()
    document["metadata"]["labels"] = {"team": "ads"}
    document["spec"]["sources"] = [{"name": "feed", "part": "dense", "push": {}}]
    owner = {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": "ads", "labels": {"team": "ads"}}}
    return document, owner


@pytest.mark.parametrize("path", ["/v1/models", "/v1/owners", "/v1/sources"])
async def test_a_list_has_only_what_has_the_label(applied, labelled, path):
    document, owner = labelled
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    (await applied.http.put("/v1/owners/ads", json=owner)).raise_for_status()
    assert len((await applied.http.get(path, params={"label": "team=ads"})).json()["items"]) == 1
    assert (await applied.http.get(path, params={"label": ["team=ads", "tier=x"]})).json()["items"] == []
    refused = await applied.http.get(path, params={"label": "team"})
    assert (refused.status_code, refused.json()["field"]) == (400, "label")


async def test_a_manifest_has_at_most_64_labels(applied, labelled):
    document, _ = labelled
    document["metadata"]["labels"] = {f"l{number}": "x" for number in range(65)}
    refused = await applied.http.put("/v1/models/ranker", json=document)
    assert (refused.status_code, refused.json()["field"]) == (400, "metadata.labels")


def test_the_command_line_filters_by_labels_and_models(live, labelled, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    document, owner = labelled
    for path, body in (("fleet", live.rooms.fleet_document()), ("models/ranker", document), ("owners/ads", owner)):
        _put(live, path, body)
    for kind in ("models", "owners", "sources"):
        assert len(_get(kind, "-l", "team=ads")) == 1, kind
        assert _get(kind, "-l", "team=x") == [], kind
    assert [one["name"] for one in _get("sources", "--model", "ranker")] == ["feed"]
    for kind in ("snapshots", "generations", "holds", "changes"):
        assert _get(kind, "--model", "ranker") == [], kind
    for words, text in (
        (("changes", "-l", "a=b"), "--label is for models, owners, sources"),
        (("models", "-l", "a"), "not of the form KEY=VALUE"),
        (("snapshots",), "--model names the model"),
        (("models", "--model", "ranker"), "--model is for"),
    ):
        refused = CliRunner().invoke(app, ["get", *words])
        assert refused.exit_code == 2
        assert text in refused.output


def _put(live, path, body):
    httpx.put(f"{live.url}/v1/{path}", json=body, headers=live.rooms.headers, trust_env=False).raise_for_status()


def _get(*words):
    result = CliRunner().invoke(app, ["get", *words, "-o", "json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
