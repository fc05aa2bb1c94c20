"""Settings of an agent, read once from the environment (`IPNEXT_AGENT_...`).

How long an agent waits for a silent process has defaults for a cluster; `ipnext dev` gives those of `temporal-dev.yaml`.
"""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, HttpUrl
from pydantic_settings import BaseSettings, SettingsConfigDict

HOST_COMMAND = (
    *("{python}", "-m", "serving.host", "--sockets", "{sockets}", "--region", "{region}", "--id", "{id}"),
    *("--artifacts", "{artifacts}", "--cache", "{cache}"),
)
VLLM_HOST_COMMAND = (
    *("{python}", "-m", "serving.genai.host", "--sockets", "{sockets}", "--region", "{region}", "--id", "{id}"),
    *("--artifacts", "{artifacts}", "--cache", "{cache}"),
)
ROUTER_COMMAND = (
    *("{python}", "-m", "serving.router", "--sockets", "{sockets}", "--region", "{region}", "--table", "{table}"),
    *("--access", "{access}"),
)


class AgentSettings(BaseSettings):
    """How an agent starts, watches and ends the processes of its region."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_AGENT_", frozen=True, populate_by_name=True)

    host_command: tuple[str, ...] = HOST_COMMAND
    """Starts a host. Fields: python, sockets, port, region, id, artifacts, cache. One that names the field `port` and not `sockets` listens on
    a loopback port, where any process of the machine may call it."""
    vllm_host_command: tuple[str, ...] = VLLM_HOST_COMMAND
    """The same for a part of engine `vllm`."""
    router_command: tuple[str, ...] = ROUTER_COMMAND
    """Starts the router. Fields: python, sockets, port, region, table, access."""
    fork_server: tuple[str, ...] = ("serving.host", "serving.router")
    """Modules that one process of the region imports once, so that `python -m MODULE` is a fork of it, which takes a fraction of
    the time. Only the commands above that begin so are forked; with none of them here there is no such process."""
    s3_endpoint_url: str | None = Field(
        default=None, validation_alias=AliasChoices("IPNEXT_AGENT_S3_ENDPOINT_URL", "IPNEXT_S3_ENDPOINT_URL")
    )
    """Passed on to hosts, for an S3 server other than AWS."""
    allowed_hosts: tuple[str, ...] = Field(
        default=(), validation_alias=AliasChoices("IPNEXT_AGENT_ALLOWED_HOSTS", "IPNEXT_ALLOWED_HOSTS")
    )
    """Names, beside loopback addresses and localhost, that requests to agent, gateway, router and hosts may give as `Host`."""
    allowed_origins: tuple[str, ...] = Field(
        default=(), validation_alias=AliasChoices("IPNEXT_AGENT_ALLOWED_ORIGINS", "IPNEXT_ALLOWED_ORIGINS")
    )
    """Origins whose pages may ask them: `https://ui.example.com`."""
    insecure_bind: bool = Field(
        default=False, validation_alias=AliasChoices("IPNEXT_AGENT_INSECURE_BIND", "IPNEXT_INSECURE_BIND")
    )
    """Lets a gateway without TLS, and an agent that asks nobody for a certificate, listen on another address than a loopback one."""
    header_seconds: float = Field(default=20.0, gt=0)
    """The agent's limit for the handshake of TLS, then for the first byte of a connection, and for the headers of a request: 408."""
    keep_alive_seconds: float = Field(default=75.0, gt=0)
    """A connection to the agent without a request is closed after so long. Workers and APIs keep theirs open between two calls."""
    connections: int | None = Field(default=None, gt=0)
    """Open connections to the agent; one more is closed. None: as many as the process may open files, less 256, and at most 10,000."""
    connections_per_source: int | None = Field(default=None, gt=0)
    """Those of one address; None: half of all."""
    gateway_certificate_file: Path | None = None
    """Certificate chain (PEM) of the region's gateway, which it shows to gateways of other regions; with `--peer-port` only. Envoy watches
    its directory for files that are renamed into it."""
    gateway_key_file: Path | None = None
    """Its private key (PEM), in the same directory."""
    gateway_ca_file: Path | None = None
    """Certificates (PEM) that those of other gateways are checked by."""
    engine_arguments_allow: tuple[str, ...] = ()
    """Arguments of vLLM that manifests may give beyond the built-in list, such as `--speculative-config`. Who may write a manifest
    may then run code on the hosts of this region, if an argument loads any."""
    engine_environment_allow: tuple[str, ...] = ()
    """The same for environment variables of its engines."""
    host_confinement: Literal["off", "available", "required"] = "available"
    """Whether hosts confine themselves: they read their code, their libraries and their cache, write nothing, start no program and listen on nothing
    further. `available`: as far as the kernel can; `required`: a host does not start on a kernel without Landlock."""
    host_readable: tuple[str, ...] = ()
    """Paths that hosts may read beside those, such as one that an engine of the operator's needs."""
    host_writable: tuple[str, ...] = ()
    """Paths that hosts may write."""
    host_user: str = ""
    """User of hosts and their engines, by name or number, if the agent runs as root. Empty: `nobody` if it can read the code of hosts and
    enter the state directory; else root, and the agent's log says why. `root`: they keep the agent's."""
    host_memory_allowance_bytes: int = Field(default=2**30, ge=0)
    """What a host and its engines may take beyond `memoryBytes` of their part, where a manifest says that. A host that takes more is
    ended and started again."""
    max_hosts: int | None = Field(default=None, ge=1)
    """Hosts that the region runs at once; a replica beyond them is not started, and says so. None: one for each 256 MiB of the machine's
    memory, at least 8; `ipnext dev` gives each of its regions an equal part of that."""
    threads: int = Field(default=1, ge=1)
    """Compute threads of a host: replicas scale a part, and threads of neighbours would fight for the same cores."""

    poll_seconds: float = Field(default=0.1, gt=0)
    """Time between looks at a process while something about it changes: a rollout waits for this."""
    idle_poll_seconds: float = Field(default=0.5, gt=0)
    """Time between looks at a process that is as wanted: keeps a quiet region quiet."""
    probe_seconds: float = Field(default=5.0, gt=0)
    """Longest wait for one answer of a process."""
    unanswered_seconds: float = Field(default=10.0, gt=0)
    """A host that has not answered for so long leaves the router table; longer than one busy moment."""
    hung_seconds: float = Field(default=60.0, gt=0)
    """A host that has not answered for so long is killed and started again; a large load may block it for a while."""
    gateway_hung_seconds: float = Field(default=30.0, gt=0)
    """The same for router and Envoy, which never block for long and stand in front of everything."""

    confirm_seconds: float = Field(default=15.0, gt=0)
    """Longest wait for router and Envoy to follow a change; a restart of either fits in."""
    settle_seconds: float = Field(default=0.2, ge=0)
    """Rest between a confirmed removal from routing and the next step, for requests that were just on their way."""
    drain_seconds: float = Field(default=10.0, ge=0)
    """Longest wait for requests in flight before a replica ends or a generation is unloaded."""
    grace_seconds: float = Field(default=5.0, gt=0)
    """From SIGTERM to SIGKILL."""
    shutdown_drain_seconds: float | None = Field(default=None, ge=0)
    """How long the gateway finishes requests when the agent ends; None: as long as the longest drain of what the region runs."""

    successor_seconds: float = Field(default=60.0, ge=0)
    """How long a region's processes go on without an agent when one has died that has no `--owner`; with an owner, as long as that lives."""
    stray_drain_seconds: float = Field(default=60.0, ge=0)
    """A router that drains though no signal ended it is ended once it has nothing under way; at the latest after so long, or after the
    longest drain of its models if that is longer."""

    load_seconds: float | None = Field(default=None, gt=0)
    """A torch snapshot that takes longer to load and warm up, once it is fetched, has failed; None: the host's own limit, 600 s."""
    load_retry_seconds: float = Field(default=15.0, gt=0)
    """Pause before a host is asked again to load what failed for want of a dependency, such as the artifact store."""
    cache_keep_seconds: float = Field(default=600.0, ge=0)
    """How long a fetched snapshot that no deployment names stays on disk, for a change of mind."""
    log_keep_seconds: float = Field(default=7 * 86_400.0, gt=0)
    """How long the log of a process that has ended stays: a fault is looked at after a weekend, not after a month."""
    log_keep_bytes: int = Field(default=512 * 2**20, gt=0)
    """Of all logs of the region together. Beyond it those of processes that have ended go, the oldest first."""
    log_limit_bytes: int = Field(default=16 * 2**20, gt=0)
    """A longer log is put aside, in place of the one that was put aside before: while its process runs, and at a start."""
    log_look_seconds: float = Field(default=30.0, gt=0)
    """Time between two looks at the logs; by so much that is written meanwhile they may be longer."""

    backoff_first_seconds: float = Field(default=0.1, gt=0)
    """Pause before the first restart of a process that ended; doubles with each further one."""
    backoff_limit_seconds: float = Field(default=10.0, gt=0)
    """Longest pause between restarts."""
    steady_seconds: float = Field(default=10.0, gt=0)
    """A process that ran for so long starts over with the first pause."""

    gateway_host: str = "127.0.0.1"
    """IP address on which clients reach the gateway. Another one than a loopback address needs TLS."""
    gateway_tls_certificate_file: Path | None = None
    """Certificate chain (PEM) of the gateway; with it the gateway speaks TLS only. A new one that is renamed into its place is
    in force without a restart."""
    gateway_tls_key_file: Path | None = None
    """Its private key (PEM), in the same directory."""
    gateway_url: HttpUrl | None = None
    """What clients are told of where the gateway is; None: its address and port."""
    gateway_header_seconds: float = Field(default=20.0, gt=0)
    """A request whose headers have not come whole by then is answered 408 by the gateway. A handshake of TLS has as long."""
    gateway_connections: int = Field(default=10_000, gt=0)
    """Clients that one gateway keeps connected; one more is turned away. The process needs twice as many open files."""
    gateway_heap_bytes: int = Field(default=4 * 2**30, ge=64 * 2**20)
    """Memory of a gateway: at 95 % new requests are answered 503 until there is room."""
    request_seconds: float = Field(default=60.0, gt=0)
    """Longest answer time that Envoy allows; deadlines of requests are shorter."""
    stream_idle_seconds: float = Field(default=660.0, gt=0)
    """Envoy ends an OpenAI request in which nothing has come or gone for so long: above the router's own limit of 600 s,
    whose answer says more. How long a stream may take in all is not limited."""
