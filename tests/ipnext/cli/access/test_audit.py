"""The audit on the command line, as an administrator uses it.

List, keep an anchor, export, verify without the server.
"""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.cli.access.audit import time_of
from ipnext.client import Client
from ipnext.errors import InvalidInput
from ipnext.model.access.audit_chain import verify
from ipnext.model.access.rights import Role

NOW = datetime(2026, 12, 20, 12, tzinfo=UTC)


@pytest.fixture
def run(live, monkeypatch):
    """Run a command against a live server whose audit has five entries."""
    live.rooms.seed("ranker")
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    monkeypatch.setenv("IPNEXT_USER", "ann")

    def run(*arguments, status=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == status, result.output
        return result

    for number in range(5):
        run("keys", "create", f"bot-{number}", "--role", "viewer")
    return run


@pytest.fixture
def export(run, live):
    """The path of an export."""
    file = live.rooms.directory / "audit.jsonl"
    file.write_text(run("audit", "export").stdout)
    return file


def test_entries_are_listed_newest_first_by_filters(run):
    text = run("audit", "list", "--limit", 2)
    assert [int(found) for found in re.findall(r"^(\d+) ", text.stdout, flags=re.MULTILINE)] == [5, 4]
    assert "there are more than 2" in text.stderr
    assert re.search(r"key admin for ann +127.0.0.1 +keys.manage +Key [a-z2-7]{16} +- +done", text.stdout)
    every = json.loads(run("audit", "list", "--all", "-o", "json").stdout)
    assert [entry["sequence"] for entry in every] == [5, 4, 3, 2, 1]
    named = run("audit", "list", "--object", every[2]["object"]["name"], "-o", "json").stdout
    assert [entry["sequence"] for entry in json.loads(named)] == [3]
    for more in (("--who", "eve"), ("--action", "models.*"), ("--since", "2200-01-01")):
        assert json.loads(run("audit", "list", *more, "-o", "json").stdout) == []
    assert len(json.loads(run("audit", "list", "--who", "admin", "--since", "1h", "-o", "json").stdout)) == 5
    assert "--since: 'soon' is no time; allowed: 90m" in run("audit", "list", "--since", "soon", status=2).stderr


def test_the_audit_is_verified_against_the_api_and_against_anchors_that_were_kept(run, live):
    anchors = live.rooms.directory / "anchors"
    anchors.write_text(run("audit", "head", "-o", "json").stdout)
    run("keys", "create", "another", "--role", "viewer")
    with anchors.open("a") as file:
        file.write(run("audit", "head", "-o", "json").stdout)
    assert re.match(r"verified: entries 1 to 6, hash [0-9a-f]{64}; without an anchor", run("audit", "verify").stdout)
    told = run("audit", "verify", "--anchor", anchors).stdout
    assert told.endswith("; 2 of 2 anchors are among them\n")
    found = json.loads(run("audit", "verify", "--after", 5, "--anchor", anchors, "-o", "json").stdout)
    assert (found["first"], found["last"], found["fault"]) == (6, 6, None)
    assert "there are no entries after 6" in run("audit", "verify", "--after", 6).stdout


def test_an_export_is_verified_without_a_server(run, export, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", "http://127.0.0.1:9")
    assert "verified: entries 1 to 5" in run("audit", "verify", export).stdout


def test_an_export_of_the_rest_is_verified_as_such(run, live):
    file = live.rooms.directory / "rest.jsonl"
    file.write_text(run("audit", "export", "--after", 3).stdout)
    assert "verified: entries 4 to 5" in run("audit", "verify", file, "--after", 3).stdout
    assert "removed at entry 1: entries 1 to 3 are missing" in run("audit", "verify", file, status=1).stdout


def test_a_tampered_export_is_not_verified(run, export):
    lines = export.read_text().splitlines(keepends=True)
    export.write_text("".join([lines[0], lines[1].replace('"keys.manage"', '"models.list"'), *lines[2:]]))
    told = run("audit", "verify", export, status=1).stdout
    assert told.startswith("NOT VERIFIED: changed at entry 2: ")
    assert told.endswith("entries 1 to 1 are whole\n")
    export.write_text("".join(lines[:4]))
    anchor = export.with_name("anchor")
    anchor.write_text(run("audit", "head", "-o", "json").stdout)
    assert "truncated at entry 5" in run("audit", "verify", export, "--anchor", anchor, status=1).stdout


def test_files_that_are_none_are_refused_in_one_line(run, tmp_path):
    assert "FILE: " in run("audit", "verify", tmp_path / "none", status=2).stderr
    (tmp_path / "anchor").write_text("x")
    assert "anchor: is not what" in run("audit", "verify", "--anchor", tmp_path / "anchor", status=2).stderr
    assert "--anchor: " in run("audit", "verify", "--anchor", tmp_path / "none", status=2).stderr


def test_only_administrators_read_the_audit(run, live, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_KEY", live.rooms.add_key("op", Role.OPERATOR))
    for verb in ("list", "head", "export", "verify"):
        assert "admins-do-everything" in run("audit", verb, status=2).stderr


def test_an_export_is_read_page_by_page(run, live, monkeypatch):
    monkeypatch.setattr("ipnext.client.calls.audit.EXPORTED_AT_ONCE", 2)
    with Client(live.url, api_key=live.rooms.admin_key) as client:
        assert [entry["sequence"] for entry in client.export_audit(after=1)] == [2, 3, 4, 5]
        assert verify(client.export_audit()).last == 5


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("2w", NOW - timedelta(weeks=2)),
        ("2026-12-01", datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12-01T06:00+02:00", datetime(2026, 12, 1, 4, tzinfo=UTC)),
    ],
)
def test_a_time_is_a_length_or_a_date(text, time):
    assert time_of(text, NOW) == time
    with pytest.raises(InvalidInput):
        time_of(f"{text}!", NOW)
