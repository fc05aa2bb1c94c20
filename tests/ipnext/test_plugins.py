"""Plug-ins of other distributions: validators that are broken or have a taken name are refused by name, and told of."""

import json

import pytest
import structlog
from typer.testing import CliRunner

from activities.validation.activities import BUILT_IN
from activities.validation.validator import discover_validators
from ipnext.cli import app
from ipnext.model.lifecycle.checks import BUILT_IN_VALIDATORS
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.registry.snapshot_files import ENGINE_FILES, OTHER_FILES
from ipnext.plugins import Plugins
from tests.plugin_packages import write_distribution

CODE = """
class Size:
    name = "size"
    required = False

    def check(self, candidate):
        return ()


class Always(Size):
    name = "always"
    required = True


class Paths(Size):
    name = "safe-paths"


class Nameless:
    required = False


class Odd(Size):
    required = "no"


size, always, paths, nameless, odd = Size(), Always(), Paths(), Nameless(), Odd()
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    directory = tmp_path / "packages"
    directory.mkdir()
    monkeypatch.syspath_prepend(str(directory))
    return directory


@pytest.fixture
def acme(packages):
    points = {name: f"acme_checks:{name}" for name in ("size", "always", "paths", "nameless", "odd", "absent")}
    groups = {"ipnext.validators": points, "ipnext.engines": {"mine": "acme_checks:Engine"}}
    write_distribution(packages, "acme_checks", CODE, groups)
    write_distribution(packages, "broken_checks", "1 / 0\n", {"ipnext.validators": {"broken": "broken_checks:check"}})
    write_distribution(
        packages, "leaving_checks", "raise SystemExit(3)\n", {"ipnext.validators": {"leaving": "leaving_checks:check"}}
    )
    write_distribution(packages, "other_checks", CODE, {"ipnext.validators": {"size2": "other_checks:size"}})


REFUSED = {
    "absent": "AttributeError: ",
    "broken": "ZeroDivisionError: division by zero",
    "leaving": "SystemExit: 3",
    "nameless": "AttributeError: ",
    "odd": "a validator has name (text), required (true or false) and check",
    "safe-paths": "the name 'safe-paths' is taken by built-in",
    "size": "the name 'size' is taken by acme_checks 1.0 (acme_checks:size)",
}


def test_the_list_of_built_in_validators_is_that_of_the_activities():
    assert list(BUILT_IN_VALIDATORS.items()) == [(one.name, one.required) for one in BUILT_IN]


@pytest.mark.usefixtures("acme")
def test_a_worker_takes_the_good_validators_and_logs_the_others():
    with structlog.testing.capture_logs() as logs:
        found = discover_validators()
    assert [one.name for one in found] == ["always", "size"]
    refused = {log["name"]: log["reason"] for log in logs if log["event"] == "validator refused"}
    assert refused.keys() == REFUSED.keys()
    assert all(refused[name].startswith(reason) for name, reason in REFUSED.items())


@pytest.mark.usefixtures("acme")
async def test_validators_are_listed_with_their_state_and_reason(world):
    listed = (await world.http.get("/v1/validators")).json()
    assert [one["name"] for one in listed[: len(BUILT_IN)]] == [one.name for one in BUILT_IN]
    assert {one["source"] for one in listed[: len(BUILT_IN)]} == {"built-in"}
    more = listed[len(BUILT_IN) :]
    assert {one["name"] for one in more if one["state"] == "active"} == {"size", "always"}
    refused = {one["name"]: one["reason"] for one in more if one["state"] == "refused"}
    assert all(refused[name].startswith(reason) for name, reason in REFUSED.items())
    assert next(one for one in more if one["name"] == "broken")["source"] == "broken_checks 1.0 (broken_checks:check)"


@pytest.mark.usefixtures("acme")
def test_the_command_lists_them(live, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    listed = json.loads(CliRunner().invoke(app, ["get", "validators", "-o", "json"]).stdout)
    assert {"safe-paths", "size", "broken"} <= {one["name"] for one in listed}
    shown = CliRunner().invoke(app, ["get", "validators"])
    assert shown.exit_code == 0, shown.output
    assert "broken" in shown.stdout


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("intreface", "is no validator"),
        ("digests", "always runs"),
        ("always", "always runs"),
        ("broken", "was refused (ZeroDivisionError: division by zero)"),
    ],
)
async def test_a_skip_that_skips_nothing_is_refused_at_the_apply(applied, name, told):
    document = applied.rooms.model_document()
    document["spec"]["validation"] = {"skip": {name: "in a hurry"}}
    answer = await applied.http.put("/v1/models/ranker?dryRun=true", json=document)
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"].startswith(f"spec.validation.skip: {name!r} {told}; allowed: adapter-base, ")
    assert {"interface", "size"} <= set(answer.json()["allowed"])
    document["spec"]["validation"] = {"skip": {"size": "in a hurry", "interface": "a new one"}}
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()


@pytest.mark.usefixtures("acme")
async def test_a_registered_engine_is_taken_and_another_is_refused_with_those_that_are(applied):
    document = applied.rooms.model_document()
    document["spec"]["parts"][0] |= {"engine": "mine", "settings": {"anything": 1}}
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    assert parse_manifest(document).spec.parts[0].engine == "mine"
    document["spec"]["parts"][0]["engine"] = "yours"
    answer = await applied.http.put("/v1/models/ranker", json=document)
    assert (answer.status_code, answer.json()["field"]) == (400, "spec.parts.0.engine")
    told = "spec.parts.0.engine: 'yours' is not registered; allowed: mine, torch, vllm"
    assert (answer.json()["message"], answer.json()["allowed"]) == (told, ["mine", "torch", "vllm"])


async def test_without_plug_ins_the_built_in_ones_are_all():
    assert Plugins().engines == ("torch", "vllm")
    assert Plugins().validators == ()


def test_an_engine_of_another_distribution_names_its_files(packages):
    code = "files = {'factor.json': 1, '*.md': 2}\nodd = {'*': 0}\n"
    points = {"times": "times_files:files", "torch": "times_files:files"}
    points |= {"odd": "times_files:odd", "gone": "times_files:gone"}
    write_distribution(packages, "times_files", code, {"ipnext.snapshot_files": points})
    plugins = Plugins()
    with structlog.testing.capture_logs() as logs:
        assert plugins.files_of("times") == {"factor.json": 1, "*.md": 2}
    assert plugins.files_of("torch") == ENGINE_FILES["torch"]
    assert [plugins.files_of(name) for name in ("odd", "gone", "none")] == [OTHER_FILES] * 3
    assert {log["engine"] for log in logs if log["event"] == "snapshot files refused"} == {"odd", "gone"}
