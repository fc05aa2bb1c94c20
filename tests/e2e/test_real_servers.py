"""`ipnext dev` on a PostgreSQL and an S3 server that run already, instead of files in its state directory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipnext.infra.process.parent_death import tether
from tests.e2e.conftest import Running, small_options
from tests.real_servers import running_postgres, running_s3
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.e2e, pytest.mark.postgres, pytest.mark.s3]

Snapshots = Callable[[float], Mapping[str, Path]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """With a database and a bucket, and the state directory of the platform on them."""
    with running_postgres() as postgres, running_s3(tmp_path_factory.mktemp("seaweed")) as s3:
        postgres.run("CREATE DATABASE platform")
        options = ("--database-url", postgres.url("platform"), "--artifacts", f"s3://{s3.bucket}/platform")
        state = tmp_path_factory.mktemp("served")
        yield SimpleNamespace(postgres=postgres, s3=s3, options=options, state=state)


def platform_on(servers: SimpleNamespace) -> Running:
    options = (*small_options(servers.state), *servers.options)
    return Running(servers.state, *options, IPNEXT_S3_ENDPOINT_URL=servers.s3.url)


@pytest.fixture
def platform(servers: SimpleNamespace, platforms: None) -> Iterator[Running]:
    """The first one on these servers; it ends with its test."""
    running = platform_on(servers)
    try:
        yield running.start()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def resumed(servers: SimpleNamespace, platforms: None) -> Iterator[Running]:
    """The next one, on what that one left; for the tests at the end, since it takes the state directory."""
    running = platform_on(servers)
    try:
        yield running.start()
    finally:
        running.stop()


def done(platform: Any, change: Any) -> None:
    change = platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)
    assert change.state == "done", change


def marks(platform: Any) -> set[float]:
    answer = platform.ask("us-east")
    assert answer.status_code == 200, answer.text
    return set(next(output["data"] for output in answer.json()["outputs"] if output["name"] == "marks"))


def logs(platform: Any) -> str:
    return "".join(path.read_text(errors="replace") for path in platform.state.rglob("*.log"))


def test_a_model_lives_on_them_alone(
    platform: Any, servers: SimpleNamespace, make_snapshots: Snapshots, pair_manifest: str
) -> None:
    platform.client.apply(pair_manifest.replace(", {region: eu-west, qps: 50}", ""))
    done(platform, platform.client.publish("pair", make_snapshots(1.0)))
    assert marks(platform) == {1.0}
    assert servers.postgres.cut(), "the platform's connections end, as in a fail-over"
    done(platform, platform.client.publish("pair", make_snapshots(2.0)))
    assert marks(platform) == {2.0}
    done(platform, platform.client.rollback("pair"))
    assert marks(platform) == {1.0}
    files = {path.name for path in platform.state.iterdir()}
    assert not files & {"ipnext.db", "artifacts"}, "nothing of it lies in the state directory"
    told = json.loads((platform.state / "stores.json").read_text())
    assert told["artifacts"] == f"s3://{servers.s3.bucket}/platform"


def refused(state: Path, *options: str, endpoint: str) -> str:
    """What `ipnext dev` says where it does not begin."""
    command = [sys.executable, "-m", "ipnext.cli", "dev", "--state", str(state), "--free-ports", *options]
    environment = {**os.environ, "IPNEXT_S3_ENDPOINT_URL": endpoint}
    ended = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        preexec_fn=tether(),
    )
    assert ended.returncode in {1, 2}, ended
    return ended.stderr


def test_a_state_directory_keeps_to_the_stores_that_it_was_begun_on(servers: SimpleNamespace) -> None:
    another = (*servers.options[:-1], f"s3://{servers.s3.bucket}/another")
    assert "was begun with its artifacts in" in refused(servers.state, *another, endpoint=servers.s3.url)
    assert "was begun with its record in" in refused(servers.state, endpoint=servers.s3.url)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ("--database-url", "mysql://x/y"),
            (
                "--database-url (IPNEXT_DEV_DATABASE_URL): database url: mysql://x/y is not supported; allowed: "
                "sqlite:///FILE, postgresql+psycopg://USER@HOST/DATABASE"
            ),
        ),
        (("--database-url", "postgresql+psycopg://nobody:secret@127.0.0.1:1/x"), "nobody:***@127.0.0.1:1/x"),
        (
            ("--artifacts", "gs://bucket"),
            (
                "--artifacts (IPNEXT_DEV_ARTIFACTS_URI): uri: 'gs://bucket' is not of a known form; allowed: "
                "file:///DIRECTORY, s3://BUCKET/PREFIX"
            ),
        ),
        (("--artifacts", "s3://no-such-bucket/x"), "does not exist"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_before_anything_begins(
    tmp_path: Path, servers: SimpleNamespace, options: tuple[str, str], reason: str
) -> None:
    said = refused(tmp_path / "state", *options, endpoint=servers.s3.url)
    assert reason in said
    assert "secret" not in said
    assert not (tmp_path / "state" / "stores.json").exists()


def test_it_goes_on_where_it_stopped_and_a_change_waits_for_a_bucket_that_is_away_but_no_request_does(
    resumed: Any, servers: SimpleNamespace, make_snapshots: Snapshots
) -> None:
    assert resumed.client.model("pair").status.serving_generation == 1
    until(lambda: resumed.ask("us-east").status_code == 200)  # its hosts load again
    change = resumed.client.publish("pair", make_snapshots(3.0))
    servers.s3.kill()
    assert marks(resumed) == {1.0}
    until(lambda: "object store does not answer" in logs(resumed), why=lambda: resumed.client.change(change.id))
    assert not resumed.client.change(change.id).state.final
    servers.s3.start()
    done(resumed, change)
    assert marks(resumed) == {3.0}


def test_a_second_platform_on_the_same_database_is_refused_and_changes_nothing(
    resumed: Any, servers: SimpleNamespace, tmp_path: Path
) -> None:
    before, second = resumed.client.fleet(), tmp_path / "second"
    assert "belongs to another platform" in refused(second, *servers.options, endpoint=servers.s3.url)
    # one that began before the first had served is told by its worker
    (second / "stores.json").write_bytes((servers.state / "stores.json").read_bytes())
    said = refused(second, *servers.options, endpoint=servers.s3.url)
    assert "worker-1 can't start" in said
    assert "belongs to another platform" in said
    assert resumed.client.fleet() == before
