"""TLS at a real gateway: nothing in clear text, and a new certificate without a restart."""

import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.ipnext.infra.envoy.test_public_listener import write_pair
from tests.waiting import until


def presented(port):
    """The common name of the certificate that the gateway shows now."""
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    [name] = x509.load_pem_x509_certificate(pem.encode()).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return name.value


def test_a_gateway_speaks_tls_only_and_takes_a_new_certificate_while_it_answers(new_agent, builder, tmp_path):
    directory = tmp_path / "tls"
    directory.mkdir()
    certificate, key = write_pair(directory, common="first")
    files = {"CERTIFICATE": certificate, "KEY": key}
    agent = new_agent(environment={f"IPNEXT_AGENT_GATEWAY_TLS_{name}_FILE": str(file) for name, file in files.items()})
    agent.client = httpx.Client(trust_env=False, timeout=60, verify=False)
    agent.start()
    assert agent.gateway.startswith("https://127.0.0.1:")
    port = int(agent.gateway.rsplit(":", 1)[1])
    agent.serve(builder("m"), {1: (1,)}, {1: 1.0})
    assert agent.infer("m").status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/v2/health/live", trust_env=False, timeout=60)
    assert presented(port) == "first"
    envoy = agent.child("envoy").pid

    write_pair(directory, common="second")
    until(lambda: agent.infer("m").status_code == 200 and presented(port) == "second", why=lambda: presented(port))
    assert agent.child("envoy").pid == envoy
    (directory / "tls.crt.new").write_text("no certificate")
    (directory / "tls.crt.new").replace(certificate)
    assert (agent.infer("m").status_code, presented(port)) == (200, "second")


def test_an_agent_does_not_start_on_an_open_address_without_tls(new_agent):
    agent = new_agent(environment={"IPNEXT_AGENT_GATEWAY_HOST": "0.0.0.0"})
    with pytest.raises(AssertionError, match="can be reached from other machines"):
        agent.launch()
