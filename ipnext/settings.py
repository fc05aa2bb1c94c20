"""Settings, read once at an entry point from the environment (`IPNEXT_...`). Temporal's own are TEMPORAL_*."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, HttpUrl, SecretStr, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput
from ipnext.model.manifest.stages import MOST_ENTRIES, PlatformStageEntry
from ipnext.temporal_access import TemporalSettings
from ipnext.timing import Timing

Settings = TypeVar("Settings", bound=BaseSettings)
_URL = TypeAdapter(HttpUrl)
LOGIN_VARIABLES = ("IPNEXT_LOGIN_ISSUER", "IPNEXT_LOGIN_CLIENT_ID", "IPNEXT_LOGIN_AUDIENCE")
"""Variables that say what `ipnext login` accepts."""


class ClientSettings(BaseSettings):
    """Settings of the SDK and the CLI."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    api_url: HttpUrl = HttpUrl("http://127.0.0.1:8700")
    """URL of the API."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Longest wait for one answer of the API; waiting for a rollout has its own limit."""
    user: str | None = Field(default=None, min_length=1, max_length=100)
    """User on whose behalf the client acts, recorded in the audit next to the principal; default: the user of the
    operating system."""
    api_key: SecretStr | None = None
    """Key or token that authenticates the client; None: the credential that `ipnext dev` or `ipnext login` stored
    for the API's address."""
    insecure_transport: bool = False
    """Allows sending a credential to another machine in clear text (`http://`)."""
    ca_file: Path | None = None
    """CA certificates (PEM) by which the API is verified; None: those that httpx trusts."""
    credentials_file: Path | None = None
    """File of stored credentials; None: `ipnext/credentials.json` in the user's configuration directory."""
    login_issuer: str | None = None
    """Identity provider of `ipnext login`: the API must name this one. None: the user agrees to the one that it
    names."""
    login_client_id: str | None = None
    """Client at the identity provider, in the same way."""
    login_audience: str | None = None
    """Audience of the tokens, in the same way. The API gets tokens that are good wherever this audience is."""

    @property
    def login_terms(self) -> tuple[str | None, str | None, str | None]:
        """Return provider, client and audience of logins as far as they are set."""
        return self.login_issuer, self.login_client_id, self.login_audience


class DevSettings(BaseSettings):
    """Settings of `ipnext dev`."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    dev_workers: int = Field(default=2, ge=1, le=16)
    """Worker processes. With two, the second one continues if the first dies, without the wait for a new one to
    start."""
    dev_database_url: str | None = None
    """The database: postgresql+psycopg://USER@HOST/DATABASE of a running server; None: SQLite in the state
    directory."""
    dev_artifacts_uri: str | None = None
    """The artifact store: s3://BUCKET/PREFIX of an existing bucket; None: a directory in the state directory."""
    s3_endpoint_url: str | None = None
    """For an S3 server other than AWS; credentials come from boto3's own chain."""
    dev_certificate_hours: float = Field(default=24.0, gt=0, le=24 * 365)
    """Life of a certificate that `ipnext dev` issues to a component."""
    dev_certificate_renewal: float = Field(default=2 / 3, gt=0, lt=1)
    """Share of a certificate's life after which it is replaced."""


def client_settings(**given: Any) -> ClientSettings:
    """Return the settings: the given ones that are not None, else those of the environment.

    InvalidInput names the invalid one.
    """
    return _read(ClientSettings, given)


def dev_settings(**given: Any) -> DevSettings:
    """Return the settings of `ipnext dev`, as `client_settings`."""
    return _read(DevSettings, given)


def _read(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        msg = f"{name} (IPNEXT_{name.upper()}): {first['msg']}, got {first['input']!r}"
        raise InvalidInput(msg, field=name, value=first["input"]) from error
    except SettingsError as error:  # a mapping or a list that is no JSON; its text names the field, not the variable
        msg = f'{error}: IPNEXT_... variables of mappings and lists are JSON, such as IPNEXT_AGENTS=\'{{"us-east": "http://127.0.0.1:7000"}}\''
        raise InvalidInput(msg) from error


class NativeCodeSettings(BaseSettings):
    """Trust in native code: the operator's setting for workers, agents and hosts."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    native_library_keys_file: Path | None = None
    """File with public keys (PEM, one after another): `library.so` of a compiled snapshot that one of them signed
    passes validation and runs on hosts, for parts whose settings have `compile`. None: no library runs. Read again
    for each snapshot. Set for workers and agents alike, and for the API, which then keeps signatures by these keys."""


class IdentitySettings(BaseSettings):
    """The OpenID Connect provider whose tokens authenticate users to the API."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    oidc_issuer: str | None = Field(default=None, min_length=1)
    """The provider's `issuer`, exactly: https://..., or http:// of loopback. None: only API keys are accepted."""
    oidc_audience: str | None = Field(default=None, min_length=1)
    """Audience (`aud`) of tokens for this platform; needed with an issuer."""
    oidc_client_id: str | None = Field(default=None, min_length=1)
    """Public client of the device flow, for `ipnext login`; None: users get tokens by other means."""
    oidc_scopes: tuple[str, ...] = ("openid", "profile", "email", "offline_access")
    """Scopes that `ipnext login` requests; `offline_access` gives a refresh token."""
    oidc_name_claim: str | None = Field(default=None, min_length=1)
    """Claim that names a user (`user:NAME`); None: `preferred_username`. `email` counts if `email_verified` is true."""
    oidc_groups_claim: str = Field(default="groups", min_length=1)
    """Claim with the names of a user's groups, as a list."""


class PlatformSettings(NativeCodeSettings, IdentitySettings, ComponentSettings, TemporalSettings, Timing):
    """Settings of API and worker. The move from one machine to many changes only these, never the code."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True, strict=False)
    """Not strict, as variables of the environment are texts."""

    database_url: str = "sqlite:///ipnext.db"
    """SQLAlchemy URL: sqlite:///FILE or postgresql+psycopg://..."""
    artifacts_uri: str = "file:///var/lib/ipnext/artifacts"
    """The artifact store: file:///DIR or s3://BUCKET/PREFIX."""
    s3_endpoint_url: str | None = None
    """For an S3 server other than AWS; credentials come from boto3's own chain."""
    native_library_signing_key_file: Path | None = None
    """Of workers: a private key (PEM) that signs what the optimization step `compile` derives. Its public key has to be
    in `native_library_keys_file`. None: a pipeline with that step is refused. Read again for each snapshot."""
    artifact_roots: tuple[Path, ...] = ()
    """Directories below which a publish by file:// may read on the server. `{owner}` in one is the owner of the
    published model; those without it are for principals that publish for all owners. None: only uploads."""
    artifact_buckets: tuple[str, ...] = ()
    """Buckets, or BUCKET/PREFIX, from which a publish by s3:// may read; `{owner}` as in `artifact_roots`."""
    source_urls: tuple[str, ...] = ()
    """URLs of the MLflow servers and OCI registries that sources may read, or of what is above them;
    `https://registry.example.com/{owner}` as in `artifact_roots`."""
    source_credentials_file: Path | None = None
    """JSON file, for the platform's user alone, of URL -> value of the header `Authorization` (`Bearer TOKEN`): sources
    send it to that server. Read again for each poll."""
    source_webhooks_file: Path | None = None
    """JSON file, for the platform's user alone, of URL of an MLflow server -> secret of its webhooks. None: no webhook
    is accepted."""
    administrators_read: Literal["listed", "any"] = "listed"
    """`any`: sources in manifests that administrators apply may read any directory that the platform's user can read,
    any bucket and any server; `ipnext dev` sets it."""
    agents: Mapping[str, str] = Field(default_factory=dict)
    """Region -> URL of its agent (the embedded infrastructure)."""
    gateways: Mapping[str, str] = Field(default_factory=dict)
    """Region -> URL of its gateway, for clients. They send credentials to these addresses only: of other regions they
    know what the agent reports, and an agent that was taken over would name an address of its own."""

    @field_validator("agents", "gateways")
    @classmethod
    def _check_urls(cls, urls: Mapping[str, str], info: ValidationInfo) -> Mapping[str, str]:
        for region, url in urls.items():
            try:
                _URL.validate_python(url)
            except ValidationError as error:
                msg = (
                    f"region {region!r} needs the URL of its {(info.field_name or '')[:-1]}, "
                    f"http://HOST:PORT, not {url!r}"
                )
                raise ValueError(msg) from error
        return urls

    temporal_ui_url: str = "http://127.0.0.1:8233"
    """Base of the links to runs."""
    lifecycle_activity_slots: int = Field(default=64, ge=1)
    """Activities of the lifecycle queue at once in one worker; each takes a thread. Waiting for replicas holds one
    for two seconds at a time."""
    urgent_activity_slots: int = Field(default=16, ge=1)
    """The same for the urgent queue: moves of a lost region, rollbacks, reverts, begins and ends of changes."""
    lifecycle_workflow_slots: int = Field(default=64, ge=1)
    """Workflow tasks at once in one worker."""
    planner_activity_slots: int = Field(default=2, ge=1)
    """Plans at once in one worker."""
    planner_executor: Literal["process", "threads"] = "process"
    """`process`: each solve of the fleet, and of a large model, is a separate process, which is killed at its limit."""
    replan_every_hours: float = Field(default=1.0, gt=0)
    """Interval of the replan schedule at its creation; an existing schedule stays unchanged (`ipnext platform
    setup`)."""
    replan_jitter_minutes: float = Field(default=5.0, ge=0)
    """Jitter of the replan schedule, in the same way."""
    worker_ready_file: Path | None = None
    """Touched every few seconds while the worker serves its queues and Temporal answers, absent otherwise: for a
    readiness probe."""
    worker_metrics_address: str | None = None
    """HOST:PORT of a worker's Temporal metrics for Prometheus (slots, latencies, sticky cache); None: none. It has
    neither TLS nor authentication: an address that is not loopback is refused without IPNEXT_INSECURE_BIND=true."""
    worker_build_id: str | None = None
    """Build of the worker's code, if runs must end on the build that they began on; None: any worker executes any
    run."""
    worker_makes_current: bool = False
    """Whether a worker with a build id makes its build the current one at its start, even if another one is or workers
    without a build id run; if not, only the first worker of a platform does, and later builds are promoted by
    `ipnext platform promote`."""
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8700, ge=0, le=65535)
    api_tls_certificate_file: Path | None = None
    """Certificate chain (PEM) of the API; with it the API accepts TLS only."""
    api_tls_key_file: Path | None = None
    """Its private key (PEM)."""
    api_header_seconds: float = Field(default=20.0, gt=0)
    """A request whose headers are not complete by then is answered 408; a connection without a byte is closed.
    Bodies other than blobs have the same time, and a second more for each 64 KiB."""
    api_body_budget_bytes: int = Field(default=128 * 2**20, ge=4 * 5 * 2**20)
    """Bytes of all bodies of requests, other than blobs, that the API reads, keeps waiting or works on; one key or
    person, or before authentication one address, has a quarter."""
    api_keep_alive_seconds: int = Field(default=5, ge=1)
    """Idle time after which a connection is closed."""
    api_connections: int | None = Field(default=None, gt=0)
    """Open connections; one more is answered 503 and closed. None: the process's limit of open files less 256, at
    most 10,000."""
    api_connections_per_source: int | None = Field(default=None, gt=0)
    """Connections of one address; None: half of all. Raise it if all clients come through one proxy."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of the proxies in front of the API, from which `X-Forwarded-For` and
    `X-Forwarded-Proto` count: the audit's `source` is then the client that they name. Of others it is the peer."""

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            try:
                ip_network(proxy)
            except ValueError as error:
                msg = f"must list IP addresses and networks such as 10.0.0.5 or 10.0.0.0/24; {error}"
                raise ValueError(msg) from error
        return proxies

    insecure_bind: bool = False
    """Allows the API, and a worker's metrics, to listen on an address that is not loopback without TLS or
    authentication."""
    authentication: Literal["required", "none"] = "required"
    """`none`: the API requires no credential, and any caller may do everything."""
    worker_confinement: Literal["off", "available", "required"] = "available"
    """Whether the processes in which a worker splits a snapshot, or renders chat templates, confine themselves, as
    hosts do: they run programs of the snapshot. `available`: as far as the kernel can; `required`: nothing is split or
    rendered on a kernel without seccomp, or whose Landlock is older than version 4 (Linux 6.7)."""
    policies_file: Path | None = None
    """Cedar policies of the operator, added to the built-in ones; a `forbid` overrides every role."""
    access_settings_version: int = Field(default=0, ge=0, lt=2**53)
    """Version of policies and identity provider. An API with a higher one than that in force puts its own in force for
    all gateways; one with other settings at the same version, or a lower one, is not ready."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, besides loopback addresses and localhost, that requests may give as `Host`; without a port."""
    allowed_origins: tuple[str, ...] = ()
    """Origins, besides the API's own, whose pages may call it: `https://ui.example.com`."""
    max_upload_bytes: int = Field(default=64 * 2**30, gt=0)
    """A larger blob is refused before it is read."""
    upload_bytes_per_second: int = Field(default=64 * 2**10, gt=0)
    """Least rate of an upload after the grace time: a blob must have arrived within its size divided by this."""
    upload_grace_seconds: float = Field(default=60.0, gt=0)
    """Time that an upload may take whatever its size."""
    artifact_bytes: int = Field(default=4 * 2**40, gt=0, lt=2**63)
    """Bytes in the artifact store of an owner whose object has no quota `artifactBytes`; and of uploads of one key
    or user that are not published yet."""
    disk_reserve_bytes: int = Field(default=2**30, ge=0)
    """Free space that uploads, publishes and fetches leave on the disk they write to: they are refused with 507, so
    that keys can still be revoked and changes aborted on the same disk. 0: none."""
    owner_replicas: int = Field(default=2000, gt=0, lt=2**31)
    """Replicas that the manifests of an owner declare together if its object has no quota `replicas`, or if it has
    no object."""
    owner_models: int = Field(default=2000, gt=0, lt=2**31)
    """Models of an owner whose object has no quota `models`, or that has no object."""
    owner_callers: int = Field(default=2000, gt=0, lt=2**31)
    """Entries of `spec.access.callers` of all models of an owner whose object has no quota `callers`, or that has no
    object. Every region's access list has them."""
    access_list_bytes: int = Field(default=16 * 2**20, gt=0, le=28 * 2**20)
    """Bytes of all models in the access list that every region has, and as many of all valid keys and roles: what
    would take more is refused. Twice the most is less than an agent takes."""
    audit_entries_per_hour: int = Field(default=3600, gt=0, lt=2**31)
    """Entries of the audit that one key or user may cause in an hour, at each API process; more are refused with 429.
    They are kept for ever."""
    artifact_grace_hours: float = Field(default=24.0, ge=1)
    """Unreferenced items of the artifact store are removed after this time without use. It must exceed the longest
    upload and publish."""
    artifact_unserved_days: float = Field(default=7.0, ge=0)
    """The bytes of snapshots that have never served, and never will, are released after this time."""
    artifact_retired_days: float = Field(default=30.0, ge=0)
    """The bytes of a retired model's snapshots are released this long after its retirement."""
    retention_snapshot_count: int = Field(default=20, ge=1, lt=2**31)
    """Of each part, the newest snapshots whose bytes are kept. `spec.retention` of a model comes first, here and
    below."""
    retention_snapshot_days: float = Field(default=90.0, ge=0, le=36_500)
    """Snapshots are kept for this time after they were published, or last began to serve."""
    retention_rollbacks: int = Field(default=10, ge=1, lt=2**31)
    """The newest generations that have served, whose snapshots are kept however old they are."""
    retention_event_count: int = Field(default=200, ge=1, lt=2**31)
    """Of each model, and of the fleet, the newest events that are kept however old they are."""
    retention_event_days: float = Field(default=90.0, ge=1, le=36_500)
    """Events are kept for this time."""
    retention_change_count: int = Field(default=100, ge=20, lt=2**31)
    """Of each model, the newest changes that are kept, with their transitions. The newest of each kind is kept, too."""
    retention_change_days: float = Field(default=365.0, ge=1, le=36_500)
    """Changes are kept for this time. A client that repeats a change's id later makes another change."""
    retention_plan_count: int = Field(default=50, ge=1, lt=2**31)
    """Of each model, and of the fleet, the newest plans and replans that are kept."""
    retention_plan_days: float = Field(default=90.0, ge=1, le=36_500)
    """Plans and replans are kept for this time."""
    retention_version_count: int = Field(default=200, ge=100, lt=2**31)
    """Of each source, the newest versions whose rows are kept."""
    retention_version_days: float = Field(default=90.0, ge=1, le=36_500)
    """Rows of versions are kept for this time after their end."""
    lifecycle: tuple[PlatformStageEntry, ...] = Field(default=(), max_length=MOST_ENTRIES)
    """JSON list of entries as in `spec.lifecycle`, for every model, before those of its manifest; workers and API need
    the same. With `"required": false` a manifest may leave the stage out, or replace it."""
    artifact_collection_hours: float = Field(default=6.0, gt=0)
    """Interval of the collection schedule at its creation."""
    metrics_models: int = Field(default=500, ge=0, le=100_000)
    """Largest fleet for which `/metrics` has series of each model; for a larger one it has only the counts. 0:
    never."""
    engine_arguments_allow: tuple[str, ...] = ()
    """vLLM arguments that manifests may give beyond the built-in list. Hosts refuse those that their agent does not
    allow too."""
    engine_environment_allow: tuple[str, ...] = ()
    """Environment variables of vLLM's engines that manifests may give, in the same way."""

    reconcile_every_seconds: float = Field(default=15.0, ge=1, le=3600)
    """Interval of passes that compare every region with the store and find models to repair. It applies to new runs
    of workflow `reconcile`: terminate the running one and delete the Temporal schedule `reconcile` to change it."""

    # planning

    move_cost: float = Field(default=0.05, ge=0)
    """$/h that starting one replica counts in the objective: smaller savings cause no moves."""
    latency_weight: float = Field(default=0.0001, ge=0)
    """$/h of one request per second, one millisecond away: near regions win if the cost is equal."""
    unmet_cost: float = Field(default=10.0, gt=0)
    """$/h of one request per second that is not served, times the model's priority: far above any hardware."""
    replan_dead_band: float = Field(default=0.02, ge=0, lt=1)
    """Share of the plan's cost that a new one must save; with less, nothing moves. Forecasts of demand are not
    better than a few per cent. A plan that serves more, or repairs a broken rule, is adopted whatever it saves."""
    replan_max_moves: int | None = Field(default=None, ge=0)
    """Most replicas that one replan starts; None: no limit. The next replans do the rest."""
    replan_time_seconds: float = Field(default=60.0, gt=0, le=900)
    """Longest search of a replan. The worker's activity allows for 900 s of it."""
    replan_gap: float = Field(default=0.01, ge=0, lt=1)
    """A plan proved to be within this share of the best one ends the search."""
    replan_on_supply: bool = True
    """Whether a changed fleet (supply, regions, prices, budgets) triggers a replan."""
    replan_delay_seconds: float = Field(default=5.0, ge=0)
    """Wait for further changes of a changed fleet, so that several applies give one replan. Each further change
    restarts the wait, up to six times its length in all."""
    replan_window: int = Field(default=16, ge=1, le=1000)
    """Models of a replan that move at a time. Each holds its surge and a few workflow tasks; frozen and paused ones
    do not count."""
    solver_grace_seconds: float = Field(default=120.0, gt=0, le=240)
    """Time of the planner's process in addition to its search, for reading, rounding and writing; then it is killed.
    On two busy cores 10,000 models took 27 s of it."""
    solver_memory_bytes: int | None = Field(default=None, gt=0)
    """Memory limit of the planner's process; None: the machine's memory."""
    kept_plans: int = Field(default=50, ge=1)
    """Plans of the whole fleet that are kept with their documents. Of older ones only adopted ones keep their entry."""


def platform_settings(**given: Any) -> PlatformSettings:
    """Return the settings of API and worker, as `client_settings`."""
    return _read(PlatformSettings, given)
