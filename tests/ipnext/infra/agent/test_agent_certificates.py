"""A real agent that asks for certificates.

Who is refused, what a new certificate takes, and what nobody gets to see.
"""

import os
import ssl
import subprocess
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from datetime import timedelta

import httpx
import psutil
import pytest

from ipnext.components.authority import CertificateAuthority
from ipnext.components.certificates import client_context
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.components.settings import ComponentSettings
from ipnext.dev.certificates import DevCertificates
from ipnext.errors import Forbidden, InvalidInput, RegionUnreachable
from ipnext.infra.agent.agent import _site, read_arguments
from ipnext.infra.agent.http_api import agent_app
from ipnext.infra.local_agents import LocalProcessInfrastructure
from ipnext.infra.process.ports import free_port
from ipnext.infra.settings import AgentSettings
from ipnext.settings import DevSettings
from tests.waiting import PATIENCE_SECONDS, until

DOMAIN = "ipnext.local"
PLANE = ComponentIdentity(DOMAIN, Component.CONTROL_PLANE)
ROUTES = sorted(
    {
        (route.method, route.resource.canonical.translate(str.maketrans("", "", "{}")))
        for route in agent_app(None, region_name="eu").router.routes()
        if route.resource.canonical != "/healthz"
    }
)
"""Method and path of everything that an agent answers to the control plane alone."""


def made(directory, regions=("eu",), **settings):
    return DevCertificates(directory, regions, ComponentSettings(), DevSettings(**settings))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return made(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def agent(tmp_path_factory, running_agent, certificates):
    """An agent of region eu; it leaves its own certificates where the test's own are."""
    agent = running_agent("eu", tmp_path_factory.mktemp("agent"), certificates=certificates)
    try:
        yield agent.start()
    finally:
        agent.close()


@pytest.fixture
def issued(tmp_path, certificates):
    """Files of any component, by the authority of the agent or by another one."""

    def issue(identity, *, authority=None, lasts=timedelta(hours=1)):
        ours = CertificateAuthority.keep(certificates.control_plane().component_ca_file.parent.parent / "authority")
        issuer = Issuer(authority or ours, tmp_path, lasts_seconds=lasts.total_seconds(), renewed_at=0.5)
        issuer.issue([identity])
        files = issuer.files(identity)
        files.authorities.write_bytes(ours.certificate)  # it trusts the agent in any case
        return files

    return issue


def ask(agent, files, path="/state", method="GET"):
    context = client_context(files, lambda _: True)
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        return client.request(method, agent.url + path)


def refused(agent, context, *, scheme="https"):
    """Whether nothing comes back over such a connection."""
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client, pytest.raises(httpx.TransportError):
        client.get(f"{scheme}://127.0.0.1:{agent.port}/healthz")
    return True


def test_the_control_plane_is_served(agent, issued):
    assert agent.infra.observe("eu").region == "eu"
    assert ask(agent, issued(PLANE)).status_code == 200


def test_a_client_without_a_certificate_is_refused(agent, certificates):
    context = ssl.create_default_context(cafile=str(certificates.control_plane().component_ca_file))
    context.check_hostname = False
    assert refused(agent, context)
    assert refused(agent, context, scheme="http")


def test_certificates_of_others_and_of_the_past_are_refused(agent, issued):
    other = ComponentIdentity("other.example", Component.CONTROL_PLANE)
    assert refused(agent, client_context(issued(PLANE, authority=CertificateAuthority.create()), lambda _: True))
    assert refused(agent, client_context(issued(PLANE, lasts=timedelta(seconds=-30)), lambda _: True))
    assert refused(agent, client_context(issued(other), lambda _: True))


@pytest.mark.parametrize("component", [Component.AGENT, Component.ROUTER, Component.HOST, Component.GATEWAY])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_another_component_may_not(agent, issued, component, method, path):
    answer = ask(agent, issued(ComponentIdentity(DOMAIN, component, "eu")), path, method)
    assert answer.status_code == 403
    if method != "HEAD":
        assert answer.json()["code"] == Forbidden.code
        assert "control-plane" in answer.json()["message"]


def test_a_page_is_refused_whoever_asks(agent, issued):
    with httpx.Client(verify=client_context(issued(PLANE), lambda _: True), trust_env=False, timeout=60) as client:
        assert client.get(agent.url + "/state", headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get(agent.url + "/state", headers={"Host": "evil.example"}).status_code == 421


def test_a_client_does_not_speak_to_the_agent_of_another_region(agent, certificates):
    with (
        LocalProcessInfrastructure({"us": agent.url}, components=certificates.control_plane()) as infra,
        pytest.raises(RegionUnreachable, match="region/eu/agent is not the component that is expected here"),
    ):
        infra.observe("us")


def test_a_control_plane_needs_a_certificate_for_https_and_https_for_other_machines():
    with pytest.raises(InvalidInput, match="IPNEXT_COMPONENT_CERTIFICATE_FILE"):
        LocalProcessInfrastructure({"eu": "https://127.0.0.1:1"}, components=ComponentSettings())
    with pytest.raises(InvalidInput, match="clear text"):
        LocalProcessInfrastructure({"eu": "http://10.1.2.3:1"}, components=ComponentSettings())
    LocalProcessInfrastructure({"eu": "http://127.0.0.1:1"}, components=ComponentSettings()).close()
    allowed = ComponentSettings(component_authentication="none")
    LocalProcessInfrastructure({"eu": "http://10.1.2.3:1"}, components=allowed).close()


def ended(tmp_path, *arguments, **environment):
    """What an agent says that does not start."""
    command = [
        sys.executable,
        "-m",
        "ipnext.infra.agent",
        "--region",
        "eu",
        "--state",
        str(tmp_path),
        "--gateway-port",
        "0",
    ]
    command += ["--port", str(free_port()), "--artifacts", "file:///nowhere", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IPNEXT_")}
    process = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert process.returncode == 2, process.stderr
    return process.stderr


def test_an_agent_without_a_certificate_does_not_start(subprocesses, tmp_path):
    assert "IPNEXT_COMPONENT_AUTHENTICATION=none" in ended(tmp_path)


def test_an_agent_that_asks_nobody_does_not_listen_to_other_machines(subprocesses, tmp_path):
    text = ended(tmp_path, "--host", "0.0.0.0", IPNEXT_COMPONENT_AUTHENTICATION="none")
    assert "IPNEXT_INSECURE_BIND=true" in text


def test_an_agent_with_files_that_are_not_there_does_not_start(subprocesses, tmp_path):
    names = ("CERTIFICATE", "KEY", "CA")
    files = {f"IPNEXT_COMPONENT_{name}_FILE": str(tmp_path / f"{name}.pem") for name in names}
    assert "CERTIFICATE.pem" in ended(tmp_path, **files)


def test_certificates_are_replaced_under_load_and_no_call_fails(tmp_path, running_agent):
    """Calls of four threads, on new and kept connections, while both sides' certificates are replaced three times."""
    certificates = made(tmp_path / "certificates", dev_certificate_renewal=1e-9)  # due whenever it is asked
    agent = running_agent("eu", tmp_path, certificates=certificates)
    answers, failed, over = Counter(), [], threading.Event()

    def ask_again_and_again(name, infrastructure):
        while not over.is_set():
            try:
                with infrastructure() as infra:
                    infra.observe("eu")
                answers[name] += 1
            except Exception as error:  # noqa: BLE001 - all that may come
                failed.append(repr(error))
            over.wait(0.01)  # the processors are for the agent, too

    def fresh():
        return LocalProcessInfrastructure({"eu": agent.url}, components=certificates.control_plane())

    ways = {"kept": lambda: nullcontext(agent.infra), "fresh": fresh}
    threads = [threading.Thread(target=ask_again_and_again, args=way) for way in [*ways.items()] * 2]
    log = agent.state / "agent.log"
    try:
        agent.start()
        for thread in threads:
            thread.start()
        for times in range(1, 4):
            before = answers.copy()
            certificates.renew()
            until(
                lambda n=times: log.read_text().count("certificate replaced") >= n, why=lambda: log.read_text()[-2000:]
            )
            until(
                lambda seen=before: all(answers[name] > seen[name] + 10 for name in ways),
                why=lambda: f"calls go on: {answers}, {failed[:3]}",
            )
    finally:
        over.set()
        for thread in threads:
            thread.join()
        agent.close()
    assert not failed, failed[:5]


def test_no_key_is_in_a_command_line_a_log_or_the_environment_of_what_an_agent_starts(agent, certificates):
    key = certificates.control_plane().component_key_file.read_text().splitlines()[1]
    own = certificates.environment("eu")["IPNEXT_COMPONENT_KEY_FILE"]
    with open(own) as file:  # noqa: PTH123 - a text
        secrets = [key, file.read().splitlines()[1]]
    for process in [psutil.Process(agent.process.pid), *agent.children()]:
        words = " ".join(process.cmdline())
        assert not any(secret in words for secret in secrets)
        if process.pid != agent.process.pid:
            assert not [name for name in process.environ() if name.startswith("IPNEXT_COMPONENT_")], process.cmdline()
    for log in [agent.state / "agent.log", *(agent.state / "logs").glob("*")]:
        text = log.read_text(errors="replace")
        assert not any(secret in text for secret in secrets)
        assert "PRIVATE" not in text


def test_a_listener_for_gateways_that_asks_nobody_is_not_started(subprocesses, tmp_path, certificates):
    given = certificates.environment("eu")
    files = {name: value for name, value in given.items() if "_GATEWAY_" not in name}
    assert "IPNEXT_AGENT_GATEWAY_CERTIFICATE_FILE" in ended(tmp_path, "--peer-port", str(free_port()), **files)


@pytest.mark.parametrize(("authentication", "listens"), [("required", False), ("none", True)])
def test_a_gateway_without_certificates_listens_for_others_only_where_nobody_is_asked(
    listeners, tmp_path, authentication, listens
):
    arguments = read_arguments(
        [
            *("--region", "eu", "--state", str(tmp_path)),
            *("--port", "1", "--gateway-port", "0", "--artifacts", "file:///x"),
        ]
    )
    components = ComponentSettings(component_authentication=authentication)
    site = _site(arguments, AgentSettings(), None, components, None)
    assert (bool(site.peer_port), bool(site.peer_url)) == (listens, listens)
