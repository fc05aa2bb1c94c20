"""Settings of an agent, read once from the environment (`IPNEXT_AGENT_...`).

The limits for silent processes have defaults for a cluster; `ipnext dev` sets those of `temporal-dev.yaml`.
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
    """Settings by which an agent starts, watches and ends the processes of its region."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_AGENT_", frozen=True, populate_by_name=True)

    runtime: Literal["processes", "kubernetes"] = "processes"
    """What hosts are: processes of the agent's machine, or pods of a cluster (settings `IPNEXT_KUBERNETES_...`)."""
    host_command: tuple[str, ...] = HOST_COMMAND
    """Starts a host. Fields: python, sockets, port, region, id, artifacts, cache. A command with the field `port`
    and without `sockets` listens on a loopback port, where any process of the machine may call it."""
    vllm_host_command: tuple[str, ...] = VLLM_HOST_COMMAND
    """Starts a host for a part of engine `vllm`; the same fields."""
    router_command: tuple[str, ...] = ROUTER_COMMAND
    """Starts the router. Fields: python, sockets, port, region, table, access."""
    fork_server: tuple[str, ...] = ("serving.host", "serving.router")
    """Modules that one process of the region imports once, so that `python -m MODULE` is a fork of it, in a fraction
    of the time. A start of the first one waits while it is imported. Only the commands above that begin so are forked;
    if none does, there is no such process."""
    s3_endpoint_url: str | None = Field(
        default=None, validation_alias=AliasChoices("IPNEXT_AGENT_S3_ENDPOINT_URL", "IPNEXT_S3_ENDPOINT_URL")
    )
    """Passed to hosts, for an S3 server other than AWS."""
    allowed_hosts: tuple[str, ...] = Field(
        default=(), validation_alias=AliasChoices("IPNEXT_AGENT_ALLOWED_HOSTS", "IPNEXT_ALLOWED_HOSTS")
    )
    """Names, besides loopback addresses and localhost, that requests to agent, gateway, router and hosts may give as
    `Host`."""
    allowed_origins: tuple[str, ...] = Field(
        default=(), validation_alias=AliasChoices("IPNEXT_AGENT_ALLOWED_ORIGINS", "IPNEXT_ALLOWED_ORIGINS")
    )
    """Origins whose pages may call them: `https://ui.example.com`."""
    insecure_bind: bool = Field(
        default=False, validation_alias=AliasChoices("IPNEXT_AGENT_INSECURE_BIND", "IPNEXT_INSECURE_BIND")
    )
    """Allows a gateway without TLS, and an agent without client certificates, to listen on an address that is not
    loopback."""
    header_seconds: float = Field(default=20.0, gt=0)
    """The agent's limit for the TLS handshake, then for the first byte of a connection, and for the headers of a
    request: 408."""
    keep_alive_seconds: float = Field(default=75.0, gt=0)
    """Idle time after which a connection to the agent is closed. Workers and APIs keep theirs open between two
    calls."""
    connections: int | None = Field(default=None, gt=0)
    """Open connections to the agent; one more is closed. None: the process's limit of open files less 256, at most
    10,000."""
    connections_per_source: int | None = Field(default=None, gt=0)
    """Connections from one address; None: half of all."""
    gateway_certificate_file: Path | None = None
    """Certificate chain (PEM) that the region's gateway presents to gateways of other regions; with `--peer-port`
    only. Envoy watches its directory for files that are renamed into it."""
    gateway_key_file: Path | None = None
    """Its private key (PEM), in the same directory."""
    gateway_ca_file: Path | None = None
    """CA certificates (PEM) by which other gateways are verified."""
    router_certificate_file: Path | None = None
    """Certificate chain (PEM) that names the region's router, by which it reaches hosts on other machines."""
    router_key_file: Path | None = None
    """Its private key (PEM)."""
    router_ca_file: Path | None = None
    """CA certificates (PEM) by which the router verifies hosts."""
    engine_arguments_allow: tuple[str, ...] = ()
    """vLLM arguments that manifests may give beyond the built-in list, such as `--speculative-config`. If such an
    argument loads code, authors of manifests can run code on the hosts of this region."""
    engine_environment_allow: tuple[str, ...] = ()
    """Environment variables of its engines that manifests may give, in the same way."""
    engine_environment_inherit: tuple[str, ...] = ()
    """Variables of the agent's environment that its engines get, beyond the built-in list of the system's, compute
    libraries' and vLLM's own."""
    host_environment_inherit: tuple[str, ...] = ()
    """Variables of the agent's environment that hosts, router and Envoy get, beyond the built-in list, such as those
    that an operator's engine reads. A credential in one of them is known to hosts, which run programs of snapshots."""
    host_confinement: Literal["off", "available", "required"] = "available"
    """Whether hosts confine themselves: they read only their code, their libraries and their cache, write nothing,
    start no program and open no further listener. `available`: as far as the kernel can; `required`: a host does not
    start on a kernel without seccomp, or whose Landlock is older than version 4 (Linux 6.7)."""
    host_readable: tuple[str, ...] = ()
    """Further paths that hosts may read, such as one that an operator's engine needs."""
    host_writable: tuple[str, ...] = ()
    """Paths that hosts may write."""
    host_user: str = ""
    """User of hosts and their engines, by name or number, if the agent runs as root. Empty: `nobody` if it can read
    the code of hosts and enter the state directory; else root, and the agent logs why. `root`: they run as the
    agent's user."""
    host_memory_allowance_bytes: int = Field(default=2**30, ge=0)
    """Memory that a host and its engines may use beyond `memoryBytes` of their part, if the manifest sets that. A
    host that uses more is killed and restarted."""
    host_memory_bytes: int | None = Field(default=None, ge=2**28)
    """Memory that a host and its engines may use if the manifest sets no `memoryBytes`. None: half of the machine's
    memory."""
    max_hosts: int | None = Field(default=None, ge=1)
    """Hosts that the region runs at once; replicas beyond them are not started and report that. None: one for each
    256 MiB of the machine's memory, at least 8; `ipnext dev` gives each of its regions an equal part of that."""
    threads: int = Field(default=1, ge=1)
    """Compute threads of a host: replicas scale a part, and threads of neighbours would compete for the same cores."""

    poll_seconds: float = Field(default=0.1, gt=0)
    """Interval between probes of a process while its state changes: a rollout waits for this."""
    idle_poll_seconds: float = Field(default=0.5, gt=0)
    """Interval between probes of a process in sync: keeps a quiet region quiet."""
    probe_seconds: float = Field(default=5.0, gt=0)
    """Longest wait for one answer of a process."""
    unanswered_seconds: float = Field(default=10.0, gt=0)
    """A host that has not answered for this long leaves the router table; longer than one busy moment."""
    hung_seconds: float = Field(default=60.0, gt=0)
    """A host that has not answered for this long is killed and restarted; a large load may block it for a while."""
    gateway_hung_seconds: float = Field(default=30.0, gt=0)
    """The same for router and Envoy, which never block for long and serve every request."""

    confirm_seconds: float = Field(default=15.0, gt=0)
    """Longest wait until router and Envoy have applied a change; a restart of either fits in."""
    access_stale_seconds: float = Field(default=30.0, gt=0)
    """Longest time for which the router goes by an old access list once the agent has a newer one: after it, requests
    that need a credential are refused with 503 until the router goes by the newer list."""
    settle_seconds: float = Field(default=0.2, ge=0)
    """Pause between a confirmed removal from routing and the next step, for requests already on the network."""
    drain_seconds: float = Field(default=10.0, ge=0)
    """Longest wait for requests in flight before a replica ends or a generation is unloaded."""
    grace_seconds: float = Field(default=5.0, gt=0)
    """From SIGTERM to SIGKILL."""
    shutdown_drain_seconds: float | None = Field(default=None, ge=0)
    """Time in which the gateway finishes requests when the agent ends; None: the longest drain of the region's
    models."""

    sigterm: Literal["end", "leave"] = "end"
    """Effect of SIGTERM. `end`: the agent finishes requests and ends the region. `leave`: only the agent ends, and the
    next one adopts the region, so that a process manager can restart it under traffic. SIGINT always ends the
    region."""
    successor_seconds: float = Field(default=60.0, ge=0)
    """Time for which a region's processes continue without an agent after one without `--owner` has died or left;
    with an owner, as long as the owner lives."""
    stray_drain_seconds: float = Field(default=60.0, ge=0)
    """A router that drains although no signal ended it is ended once it has no request under way; at the latest
    after this time, or after the longest drain of its models if that is longer."""

    load_seconds: float | None = Field(default=None, gt=0)
    """A torch snapshot that takes longer to load and warm up, once it is fetched, has failed; None: the host's own
    limit, 600 s."""
    load_retry_seconds: float = Field(default=15.0, gt=0)
    """Pause before a host retries a load that failed because of a dependency, such as the artifact store."""
    disk_reserve_bytes: int = Field(
        default=2**30,
        ge=0,
        validation_alias=AliasChoices("IPNEXT_AGENT_DISK_RESERVE_BYTES", "IPNEXT_DISK_RESERVE_BYTES"),
    )
    """Free space that fetched snapshots leave on the disk of the state directory, for the region's own state. 0:
    none."""
    cache_keep_seconds: float = Field(default=600.0, ge=0)
    """Time for which a fetched snapshot that no deployment names stays on disk, in case it is needed again."""
    log_keep_seconds: float = Field(default=7 * 86_400.0, gt=0)
    """Time for which the log of an ended process is kept: a fault is examined after a weekend, not after a month."""
    log_keep_bytes: int = Field(default=512 * 2**20, gt=0)
    """Limit of all logs of the region together. Beyond it, logs of ended processes are deleted, the oldest first."""
    log_limit_bytes: int = Field(default=16 * 2**20, gt=0)
    """A longer log is rotated, in place of the previously rotated one: while its process runs, and at a start."""
    log_look_seconds: float = Field(default=30.0, gt=0)
    """Interval between two checks of the logs; output in this interval may exceed the limits."""

    backoff_first_seconds: float = Field(default=0.1, gt=0)
    """Pause before the first restart of a process that ended; doubles with each further one."""
    backoff_limit_seconds: float = Field(default=10.0, gt=0)
    """Longest pause between restarts."""
    steady_seconds: float = Field(default=10.0, gt=0)
    """A process that ran for this long starts over with the first pause."""

    gateway_host: str = "127.0.0.1"
    """IP address on which clients reach the gateway. An address that is not loopback needs TLS."""
    gateway_tls_certificate_file: Path | None = None
    """Certificate chain (PEM) of the gateway; with it the gateway accepts TLS only. A new one that is renamed into
    its place is in force without a restart."""
    gateway_tls_key_file: Path | None = None
    """Its private key (PEM), in the same directory."""
    gateway_url: HttpUrl | None = None
    """The gateway's URL as clients see it; None: its address and port."""
    gateway_header_seconds: float = Field(default=20.0, gt=0)
    """The gateway answers 408 to a request whose headers are not complete by then. A TLS handshake has the same
    limit."""
    gateway_keep_alive_seconds: float = Field(default=75.0, gt=0)
    """The gateway closes a connection without a request after this time: above the 60 s of usual balancers, which
    expect that their side closes it."""
    gateway_connections: int = Field(default=10_000, gt=0)
    """Client connections of one gateway; one more is refused. The process needs twice as many open files."""
    gateway_connections_per_source: int | None = Field(default=None, gt=0)
    """Those of one address, and of the addresses that share its group; None: half of `gateway_connections`. With that
    figure or more there are no groups: for clients behind one balancer."""
    gateway_heap_bytes: int = Field(default=4 * 2**30, ge=64 * 2**20)
    """Memory of a gateway: at 95 % it answers new requests with 503 until memory is free."""
    request_seconds: float = Field(default=60.0, gt=0)
    """Longest answer time that Envoy allows; deadlines of requests are shorter."""
    stream_idle_seconds: float = Field(default=660.0, gt=0)
    """Envoy ends an OpenAI request without traffic for this long: above the router's own limit of 600 s, whose
    answer says more. The total time of a stream is not limited."""
