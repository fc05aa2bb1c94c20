"""A real Temporal server behind a real Envoy that asks for TLS, client certificates and API keys."""

import asyncio
import json
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from temporalio import workflow
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from ipnext import temporal
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.errors import InvalidInput, Unavailable
from ipnext.infra.gateway.process import envoy_binary
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.temporal_access import TemporalSettings, read_access
from tests.waiting import PATIENCE_SECONDS, eventually
from workflows.runtime.credential_renewal import CurrentClient

SERVER_NAME = "temporal.example"


class Signer:
    """An authority for servers, which have DNS names, and their clients."""

    def __init__(self):
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        self.certificate = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))

    def _signed(self, name, key, *extensions):
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + timedelta(hours=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def pair(self, directory, name):
        """Write NAME.pem and NAME-key.pem; the paths of both."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = self._signed(subject, key, x509.SubjectAlternativeName([x509.DNSName(name)]))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        found = directory / f"{name}.pem", directory / f"{name}-key.pem"
        for path, content in zip(found, (pem, private), strict=True):
            temporary = path.with_suffix(".new")
            temporary.write_bytes(content)
            temporary.replace(path)
        return found


def _type(name):
    return f"type.googleapis.com/envoy.{name}"


def _http2():
    options = {
        "@type": _type("extensions.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def _address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _file(path):
    return {"filename": str(path)}


def proxy(port, temporal_port, directory, *, certificate, authority, asks_certificate):
    """Envoy's configuration: TLS in front of Temporal. It logs which key came with which call."""
    tls = {
        "@type": _type("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": asks_certificate,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [{"certificate_chain": _file(certificate[0]), "private_key": _file(certificate[1])}],
            "validation_context": {"trusted_ca": _file(authority)},
        },
    }
    log = {
        "@type": _type("extensions.access_loggers.file.v3.FileAccessLog"),
        "path": str(directory / f"calls-{port}.log"),
        "log_format": {"text_format_source": {"inline_string": "%REQ(:PATH)% %REQ(AUTHORIZATION)%\n"}},
    }
    keys = {"name": "authorization", "string_match": {"safe_regex": {"regex": "Bearer key-(one|two)"}}}
    match = {"prefix": "/"} if asks_certificate else {"prefix": "/", "headers": [keys]}
    refusal = {"match": {"prefix": "/"}, "direct_response": {"status": 403}}
    routes = [{"match": match, "route": {"cluster": "temporal", "timeout": "0s"}}, refusal]
    router = {"@type": _type("extensions.filters.http.router.v3.Router")}
    connections = {
        "@type": _type("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "proxy",
        "codec_type": "HTTP2",
        "access_log": [{"name": "file", "typed_config": log}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    return {
        "listener": {
            "name": f"proxy-{port}",
            "address": _address(port),
            "filter_chains": [
                {
                    "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}],
                    "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
                }
            ],
        },
        "cluster": {
            "name": "temporal",
            "type": "STATIC",
            "connect_timeout": "5s",
            "typed_extension_protocol_options": _http2(),
            "load_assignment": {
                "cluster_name": "temporal",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(temporal_port)}}]}],
            },
        },
    }


class Guarded:
    """Temporal behind two doors: one that asks for a client certificate, one for an API key."""

    def __init__(self, directory, signer):
        self.directory = directory
        self.signer = signer
        self.authority = directory / "ca.pem"
        self.authority.write_bytes(signer.certificate)
        self.by_certificate, self.by_key, self.plain = free_port(), free_port(), free_port()

    def start(self, stack):
        server = read_devfile().temporal.model_copy(update={"port": self.plain})
        self._run(stack, "temporal", server_command(server, binary=temporal_binary(), state=None))
        pair = self.signer.pair(self.directory, SERVER_NAME)
        more = {"certificate": pair, "authority": self.authority}
        doors = [
            proxy(port, self.plain, self.directory, asks_certificate=port == self.by_certificate, **more)
            for port in (self.by_certificate, self.by_key)
        ]
        resources = {"listeners": [door["listener"] for door in doors], "clusters": [doors[0]["cluster"]]}
        file = self.directory / "envoy.json"
        file.write_text(json.dumps({"static_resources": resources}))
        command = [str(envoy_binary()), "--config-path", str(file), "--disable-hot-restart", "--concurrency", "1"]
        self._run(stack, "envoy", command)

    def _run(self, stack, name, command):
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=tether())  # noqa: PLW1509
        stack.callback(process.wait, PATIENCE_SECONDS)
        stack.callback(process.kill)

    def settings(self, **given):
        name = {"temporal_tls_ca_file": self.authority, "temporal_tls_server_name": SERVER_NAME}
        return TemporalSettings(**name, **given)

    def calls(self):
        return (self.directory / f"calls-{self.by_key}.log").read_text()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, subprocesses):
    with ExitStack() as stack:
        found = Guarded(tmp_path_factory.mktemp("guarded"), Signer())
        found.start(stack)
        yield found


async def connected(port, settings):
    """A client, once the server is up; Unavailable if it refuses."""
    return await temporal.connect(address=f"127.0.0.1:{port}", access=read_access(settings))


@pytest.fixture
async def ready(guarded):
    """Wait for both servers, on the way that is right."""
    certificate, key = guarded.signer.pair(guarded.directory, "ready.example")
    settings = guarded.settings(temporal_tls_certificate_file=certificate, temporal_tls_key_file=key)
    client = await temporal.connect(
        address=f"127.0.0.1:{guarded.by_certificate}", access=read_access(settings), lazy=True
    )
    found = []

    async def look():
        found.append(await temporal.reachable(client))

    while not (found and found[-1]):
        await look()
    return guarded


async def test_a_certificate_opens_the_door(ready, tmp_path):
    certificate, key = ready.signer.pair(tmp_path, "worker.example")
    settings = ready.settings(temporal_tls_certificate_file=certificate, temporal_tls_key_file=key)
    client = await connected(ready.by_certificate, settings)
    assert (await temporal.namespace_of(client)).name == client.namespace


async def test_no_certificate_and_one_of_another_authority_do_not(ready, tmp_path):
    certificate, key = Signer().pair(tmp_path, "worker.example")
    for settings in (
        ready.settings(),
        ready.settings(temporal_tls_certificate_file=certificate, temporal_tls_key_file=key),
    ):
        with pytest.raises(Unavailable):
            await connected(ready.by_certificate, settings)


async def test_a_server_that_proves_another_name_is_not_spoken_to(ready, tmp_path):
    certificate, key = ready.signer.pair(tmp_path, "worker.example")
    settings = TemporalSettings(
        temporal_tls_ca_file=ready.authority,
        temporal_tls_server_name="other.example",
        temporal_tls_certificate_file=certificate,
        temporal_tls_key_file=key,
    )
    with pytest.raises(Unavailable):
        await connected(ready.by_certificate, settings)


async def test_an_api_key_opens_the_door_and_no_error_has_it(ready, tmp_path):
    file = tmp_path / "key"
    file.write_text("key-one\n")
    await temporal.namespace_of(await connected(ready.by_key, ready.settings(temporal_api_key_file=file)))
    file.write_text("key-wrong")
    with pytest.raises(Unavailable) as caught:
        await temporal.namespace_of(await connected(ready.by_key, ready.settings(temporal_api_key_file=file)))
    chain, error = [], caught.value
    while error is not None:
        chain.append(f"{error} {error!r}")
        error = error.__cause__ or error.__context__
    assert "key-wrong" not in " ".join(chain)


async def test_the_api_takes_a_new_key_by_itself(ready, tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{ready.by_key}")
    file = tmp_path / "key"
    file.write_text("key-one")
    lifecycle = TemporalLifecycle(ui_url="", access=ready.settings(temporal_api_key_file=file))
    assert (await lifecycle.namespace()).name
    file.write_text("key-wrong")

    async def asked():
        try:
            return (await lifecycle.namespace()).name
        except Unavailable:
            return ""

    while await asked():
        pass  # until the wrong key is in use
    file.write_text("key-two")
    while not await asked():
        pass
    await eventually(lambda: "Bearer key-two" in ready.calls(), why=ready.calls)


@workflow.defn(name="greeting")
class Greeting:
    """A workflow that ends at once."""

    @workflow.run
    async def run(self, name: str) -> str:
        """Greet."""
        return f"hello {name}"


async def test_a_worker_takes_a_new_certificate_without_a_restart(ready, tmp_path):
    certificate, key = ready.signer.pair(tmp_path, "worker.example")
    settings = ready.settings(temporal_tls_certificate_file=certificate, temporal_tls_key_file=key)
    first = await connected(ready.by_certificate, settings)
    current = CurrentClient(first, settings)
    worker = Worker(first, task_queue="renewing", workflows=[Greeting], workflow_runner=UnsandboxedWorkflowRunner())
    async with worker:
        following = asyncio.create_task(current.follow([worker], lambda: connected(ready.by_certificate, settings)))
        assert await first.execute_workflow("greeting", "one", id="g-1", task_queue="renewing") == "hello one"
        ready.signer.pair(tmp_path, "worker.example")
        await eventually(lambda: worker.client is not first, why=lambda: "the worker has another client")
        assert worker.client is current.get()
        assert await current.get().execute_workflow("greeting", "two", id="g-2", task_queue="renewing") == "hello two"
        following.cancel()


@pytest.mark.parametrize("missing", ["temporal_tls_certificate_file", "temporal_tls_key_file"])
def test_a_certificate_needs_its_key(tmp_path, missing):
    names = {"temporal_tls_certificate_file", "temporal_tls_key_file"} - {missing}
    with pytest.raises(InvalidInput, match=missing.upper()):
        read_access(TemporalSettings(**{name: tmp_path / name for name in names}))


@pytest.mark.parametrize("content", ["", " \n", "two\nlines", "k\x00", "schl\u00fcssel"])
def test_a_key_file_has_one_key_and_the_error_does_not(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(InvalidInput) as caught:
        read_access(TemporalSettings(temporal_api_key_file=tmp_path / "key"))
    assert "IPNEXT_TEMPORAL_API_KEY_FILE" in caught.value.message
    assert not content.strip() or content not in caught.value.message


def test_nothing_set_leaves_the_connection_to_temporals_own_settings():
    access = read_access(TemporalSettings())
    assert not access.has_tls
    assert access.api_key is None


def test_what_a_connection_is_made_with_does_not_show_the_key(tmp_path):
    (tmp_path / "key").write_text("key-one")
    access = read_access(TemporalSettings(temporal_api_key_file=tmp_path / "key"))
    assert access.api_key == "key-one"
    assert "key-one" not in f"{access} {access!r}"
