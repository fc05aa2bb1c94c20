"""The artifact store on the command line."""

import hashlib
import json
import os
import time

import pytest
from typer.testing import CliRunner

from ipnext.cli import app


@pytest.fixture
def run(live, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", live.url)

    def run(*arguments):
        result = CliRunner().invoke(app, ["artifacts", "collect", *arguments])
        assert result.exit_code == 0, result.output
        return result

    return run


def test_a_dry_run_shows_what_goes_and_the_next_one_removes_it(live, run):
    sha = hashlib.sha256(b"old").hexdigest()
    live.rooms.artifacts.put_blob(sha, iter([b"old"]))
    then = time.time() - 3 * 86_400
    os.utime(live.rooms.artifacts.root / "blobs" / sha, (then, then))
    shown = run("--dry-run")
    assert "1 blobs of 3 bytes would be removed" in shown.stderr
    assert "no snapshot names it" in shown.stdout
    assert not live.rooms.artifacts.missing([sha])
    removed = json.loads(run("-o", "json").stdout)
    assert (removed["blobs"], removed["items"][0]["name"]) == (1, sha)
    assert live.rooms.artifacts.missing([sha]) == {sha}
