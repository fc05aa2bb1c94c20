"""Settings, read once at an entry point from the environment (`IPNEXT_...`). Temporal's own are TEMPORAL_*."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, HttpUrl
from pydantic_settings import BaseSettings, SettingsConfigDict


class ClientSettings(BaseSettings):
    """What the SDK and the CLI need."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    api_url: HttpUrl = HttpUrl("http://127.0.0.1:8700")
    """Where the API listens."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Longest wait for one answer of the API; waiting for a rollout has its own limit."""


class PlatformSettings(BaseSettings):
    """What API and worker need. Going from one machine to many is a change of these, never of code."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    database_url: str = "sqlite:///ipnext.db"
    """SQLAlchemy URL: sqlite:///FILE or postgresql+psycopg://..."""
    artifacts_uri: str = "file:///var/lib/ipnext/artifacts"
    """The artifact store: file:///DIR or s3://BUCKET/PREFIX."""
    s3_endpoint_url: str | None = None
    """For an S3 server other than AWS; credentials come from boto3's own chain."""
    artifact_roots: tuple[Path, ...] = ()
    """Directories below which a publish by file:// may read on the server. None: only uploads."""
    artifact_buckets: tuple[str, ...] = ()
    """Buckets from which a publish by s3:// may read."""
    agents: Mapping[str, str] = Field(default_factory=dict)
    """Region -> URL of its agent (the embedded infrastructure)."""
    temporal_ui_url: str = "http://127.0.0.1:8233"
    """Base of the links to runs."""
    devfile: Path | None = None
    """Another temporal-dev.yaml than the one found (task queues and schedules)."""
    worker_ready_file: Path | None = None
    """Written by the worker once it serves its queues: for whoever started it."""
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8700, ge=0, le=65535)
    max_upload_bytes: int = Field(default=64 * 2**30, gt=0)
    """A larger blob is refused before it is read."""
