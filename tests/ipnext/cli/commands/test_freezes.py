"""Freezes on the command line, as a user reads them."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from ipnext.cli.commands.freezes import end_of
from ipnext.errors import InvalidInput

NOW = datetime(2026, 12, 20, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def ranker(live, monkeypatch):
    live.rooms.seed("ranker")
    monkeypatch.setenv("IPNEXT_USER", "ann")


@pytest.fixture
def manifest(live):
    window = {
        "start": "2026-12-20T18:00",
        "duration": "P2DT12H",
        "rrule": "FREQ=WEEKLY;BYDAY=FR",
        "timeZone": "Europe/Berlin",
    }
    spec = {"reason": "we rest", "windows": [window], "scope": {"owners": ["search"]}, "kinds": ["publish"]}
    document = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "weekends"}, "spec": spec}
    file = live.rooms.directory / "freeze.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture
def parts(live):
    given = []
    for part in ("sparse", "dense"):
        live.rooms.write_snapshot(live.rooms.directory / part, part.encode())
        given += ["--part", f"{part}={live.rooms.directory / part}"]
    return given


def test_a_freeze_of_a_manifest_is_applied_listed_and_described(run, manifest):
    assert "would be applied" in run("apply", "-f", manifest, "--dry-run").stdout
    assert json.loads(run("get", "freezes", "-o", "json").stdout) == []
    assert re.search(r"freeze +weekends +1 +applied", run("apply", "-f", manifest).stdout)
    assert re.search(r"weekends +owners search +publish ", run("get", "freezes").stdout)
    text = run("describe", "freeze", "weekends").stdout
    assert "freeze weekends, version 1, owner default: we rest" in text
    assert "holds back publish of owners search; a rollback always passes" in text
    assert text.count("2 days, 12:00:00") == 5
    assert json.loads(run("describe", "freeze", "weekends", "-o", "json").stdout)["version"] == 1


def test_a_model_is_frozen_for_a_while_and_the_way_out_is_told(run):
    result = run("freeze", "ranker", "--until", "6h", "--reason", "the shop is full")
    assert re.search(r"hold-ranker +models ranker +publish,apply,move +20", result.stdout)
    assert "`ipnext unfreeze hold-ranker` lifts it" in result.stderr
    run("freeze", "ranker", "--until", "9h", "--reason", "it is still full")
    (view,) = json.loads(run("get", "freezes", "-o", "json").stdout)
    assert (view["version"], view["manifest"]["spec"]["reason"]) == (2, "it is still full")
    assert "freeze hold-ranker is lifted" in run("unfreeze", "hold-ranker", "--reason", "sold out").stdout
    audit = run("audit", "list", "--action", "freezes.*").stdout
    assert re.search(r"key admin for ann +127.0.0.1 +freezes.change +Freeze hold-ranker +- +done +sold out", audit)
    assert re.search(r"key admin for ann .* Freeze hold-ranker +- +done +the shop is full", audit)


def test_owners_and_regions_are_frozen_without_a_model(run):
    result = run("freeze", "--owner", "search", "--region", "eu*", "--until", "1d", "--reason", "r", "-o", "json")
    assert json.loads(result.stdout)["manifest"]["spec"]["scope"] == {
        "models": [],
        "owners": ["search"],
        "regions": ["eu*"],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ranker", "--until", "6h", "--reason", " "], "spec.reason: String should have at least 1 character"),
        (["ranker", "--until", "soon", "--reason", "r"], "--until: 'soon' is no time; allowed: 2026-12-27T06:00"),
        (["ranker", "--until", "2020-01-01", "--reason", "r"], "has passed; allowed: a later time"),
        (["--until", "6h", "--reason", "r"], "nothing is named; allowed: MODEL"),
        (["rankr", "--until", "6h", "--reason", "r"], "model 'rankr' is not known; known: ranker"),
        (["ranker", "--until", "6h"], "Missing option '--reason'"),
        (["ranker", "--until", "6h", "--reason", "r", "--name", "now"], "names what is frozen at present"),
    ],
)
def test_what_is_wrong_is_one_line_with_what_is_allowed(run, arguments, words):
    assert words in run("freeze", *arguments, status=2).stderr
    assert json.loads(run("get", "freezes", "-o", "json").stdout) == []


def test_an_override_needs_a_reason_and_stands_in_the_audit(run, parts):
    run("freeze", "ranker", "--until", "6h", "--reason", "the shop is full")
    change = json.loads(run("publish", "ranker", *parts, "--change-id", "fix-1", "-o", "json").stdout)
    assert "Missing option '--reason'" in run("override", change["id"], status=2).stderr
    told = run("override", "fix-1", "--reason", "a security fix").stdout
    assert told == "change fix-1 of ranker passes hold-ranker; by key admin (for ann): a security fix\n"
    audit = run("audit", "list", "--object", "fix-1").stdout
    assert re.search(r"key admin for ann .* models.override +Change fix-1 +ranker +done +a security fix", audit)
    assert "is not known" in run("override", "nothing", "--reason", "r", status=2).stderr


def test_a_publish_brings_its_override_only_with_a_reason(run, parts):
    refused = run("publish", "ranker", *parts, "--override-freeze", status=2)
    assert "--override-freeze: needs a --reason" in refused.stderr
    assert "give --override-freeze too" in run("publish", "ranker", *parts, "--reason", "r", status=2).stderr
    run("publish", "ranker", *parts, "--override-freeze", "--reason", "a fix")
    assert re.search(r"models.publish +Model ranker +ranker +done +a fix", run("audit", "list").stdout)


def test_what_can_not_be_described_names_what_can(run):
    assert "freeze 'nope' is not known" in run("describe", "freeze", "nope", status=2).stderr
    assert (
        "allowed: MODEL, change CHANGE, snapshot MODEL PART N, source MODEL NAME, plan PLAN, replan REPLAN, freeze NAME"
        in run("describe", "x", "y", status=2).stderr
    )


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("90m", NOW + timedelta(minutes=90)),
        ("2w", NOW + timedelta(weeks=2)),
        ("2026-12-27T06:00:00+01:00", datetime(2026, 12, 27, 5, tzinfo=UTC)),
        ("2026-12-27T05:00Z", datetime(2026, 12, 27, 5, tzinfo=UTC)),
    ],
)
def test_an_end_is_a_time_or_a_length(text, end):
    assert end_of(text, NOW) == end


@pytest.mark.parametrize("text", ["0h", "-3h", "6", "2026-13-01"])
def test_an_end_that_is_none_is_refused(text):
    with pytest.raises(InvalidInput, match="is no time"):
        end_of(text, NOW)
