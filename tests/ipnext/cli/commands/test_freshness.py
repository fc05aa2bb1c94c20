"""When snapshots were trained, published and served, on the command line and in the client."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.cli.output import exact_duration
from ipnext.client import Client

TRAINED = "2026-11-30T23:59:00Z"


@pytest.fixture
def run(live, monkeypatch):
    """Run a command against the live server, which has the ranker."""
    monkeypatch.setenv("IPNEXT_API_URL", live.url)

    def run(*arguments, status=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == status, result.output
        return result.output

    for name, document in (("fleet", live.rooms.fleet_document()), ("model", live.rooms.model_document())):
        file = live.rooms.directory / f"{name}.yaml"
        file.write_text(yaml.safe_dump(document))
        run("apply", "-f", file)
    return run


@pytest.fixture
def parts(live):
    given = []
    for part in ("sparse", "dense"):
        live.rooms.write_snapshot(live.rooms.directory / part, part.encode())
        given += ["--part", f"{part}={live.rooms.directory / part}"]
    return given


def trained(live):
    with live.rooms.store.read() as unit:
        return [snapshot.trained_at for snapshot in unit.snapshots("ranker")]


def test_a_publish_takes_the_time_from_the_option_and_else_from_the_training_record(run, live, parts):
    for part in ("sparse", "dense"):
        (live.rooms.directory / part / "training.json").write_text(json.dumps({"trainedAt": TRAINED}))
    run("publish", "ranker", *parts)
    assert trained(live) == [datetime.fromisoformat(TRAINED)] * 2
    newer = live.rooms.directory / "newer"
    live.rooms.write_snapshot(newer, b"newer")
    (newer / "training.json").write_text(json.dumps({"trainedAt": TRAINED}))
    run("publish", "ranker", "--part", f"dense={newer}", "--trained-at", "2026-12-01T01:00:00+01:00")
    assert max(trained(live)) == datetime(2026, 12, 1, tzinfo=UTC)


def test_a_record_of_another_tool_does_not_stop_a_publish(run, live, parts):
    (live.rooms.directory / "dense" / "training.json").write_text('{"lr": 0.1}')
    run("publish", "ranker", *parts)
    assert trained(live) == [None, None]


@pytest.mark.parametrize("given", ["yesterday", "2026-11-30T23:59:00", "1764547140"])
def test_a_time_without_a_zone_is_refused(run, parts, given):
    assert f"--trained-at: {given!r} is no time with its zone" in run(
        "publish", "ranker", *parts, "--trained-at", given, status=2
    )


def test_a_model_and_a_snapshot_show_their_times(run, live, parts):
    run("publish", "ranker", *parts, "--trained-at", (datetime.now(UTC) - timedelta(hours=2)).isoformat())
    assert "served first: not yet" in run("describe", "snapshot", "ranker", "dense", "1")
    live.rooms.serve(1)
    file = live.rooms.directory / "model.yaml"
    document = yaml.safe_load(file.read_text())
    for part in document["spec"]["parts"]:
        part["freshness"] = {"target": "15m", "objective": 0.9}
    file.write_text(yaml.safe_dump(document))
    run("apply", "-f", file)
    told = " ".join(run("describe", "ranker").split())
    assert "snapshots that serve part users in snapshot trained published serves since age target fresh" in told
    assert "dense eu 1 2h ago" in told
    assert "15m 0.00% of 90.00% late" in told
    snapshot = run("describe", "snapshot", "ranker", "dense", "1")
    assert "trained: " in snapshot
    assert "2h ago" in snapshot
    assert "served first: eu 20" in snapshot
    data = json.loads(run("describe", "snapshot", "ranker", "dense", "1", "-o", "json"))
    assert [each["region"] for each in data["servings"]] == ["eu"]


def test_an_unknown_training_is_said(run, live, parts):
    run("publish", "ranker", *parts)
    live.rooms.serve(1)
    assert "trained: unknown, so its age counts from the publication" in run(
        "describe", "snapshot", "ranker", "dense", "1"
    )
    assert "unknown" in run("describe", "ranker")


def test_the_client_has_the_times(run, live):
    directory = live.rooms.directory
    for part in ("sparse", "dense"):
        live.rooms.write_snapshot(directory / part, part.encode())
    at = datetime.fromisoformat(TRAINED)
    with Client(live.url) as client:
        client.publish("ranker", {part: directory / part for part in ("sparse", "dense")}, trained_at=at)
        live.rooms.serve(1)
        assert [(found.part, found.trained_at) for found in client.model("ranker").freshness] == [
            ("dense", at),
            ("sparse", at),
        ]
        assert client.snapshot("ranker", "dense", 1).servings[0].region == "eu"
        assert [found.trained_at for found in client.snapshots("ranker")] == [at, at]


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90s"), (900, "15m"), (7200, "2h"), (86400, "1d"), (86401, "86401s")]
)
def test_targets_are_shown_as_they_are_written(seconds, text):
    assert exact_duration(seconds) == text
