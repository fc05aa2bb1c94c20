"""Gateways of two regions that prove themselves to each other: real Envoy, stand-ins behind it."""

import json
import ssl
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from ipnext.components.authority import CertificateAuthority
from ipnext.components.caller_proof import proof_file, read_proof
from ipnext.components.certificates import client_context
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.components.settings import ComponentSettings
from ipnext.components.sockets import socket_path
from ipnext.dev.certificates import DevCertificates
from ipnext.settings import DevSettings
from tests.waiting import until

DOMAIN = "ipnext.local"


class Pair:
    """Regions eu and us. Model `there` is served in us only, and users of eu are sent there."""

    def __init__(self, directory, running_agent, builder):
        self.certificates = DevCertificates(
            directory / "certificates",
            ("eu", "us"),
            ComponentSettings(),
            DevSettings(dev_certificate_renewal=1e-9),  # due whenever it is asked
        )
        self.authority = CertificateAuthority.keep(directory / "certificates" / "authority")
        self.peers = directory / "peers.json"
        self.eu, self.us = (
            running_agent(region, directory, peers=self.peers, certificates=self.certificates)
            for region in ("eu", "us")
        )
        self.builder = builder

    def start(self):
        both = (self.eu, self.us)
        self.peers.write_text(json.dumps({agent.region: f"https://127.0.0.1:{agent.peer_port}" for agent in both}))
        for agent in both:
            agent.start()
        self.us.serve(self.builder("there", "us"), {1: (1,)}, {1: 1.0})
        self.eu.infra.route(self.builder("there", "eu").table(1, {("us", 1): 1.0}, served=[]))
        return self

    def close(self):
        for agent in (self.eu, self.us):
            agent.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, running_agent, builder):
    made = Pair(tmp_path_factory.mktemp("pair"), running_agent, builder)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture
def asked(pair, tmp_path):
    """What the gateway of us says to a client with such a certificate, at its port for peers."""

    def ask(identity, *, authority=None, lasts=timedelta(hours=1)):
        issuer = Issuer(authority or pair.authority, tmp_path, lasts_seconds=lasts.total_seconds(), renewed_at=0.5)
        issuer.issue([identity])
        files = issuer.files(identity)
        files.authorities.write_bytes(pair.authority.certificate)
        return get(pair, client_context(files, lambda peer: peer.region == "us"))

    return ask


def get(pair, context, scheme="https"):
    """A status; None if the connection is refused."""
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        try:
            return client.get(f"{scheme}://127.0.0.1:{pair.us.peer_port}/v2/health/live").status_code
        except httpx.TransportError:
            return None


def test_a_request_is_answered_in_the_other_region(pair):
    answer = pair.eu.infer("there")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ipnext-generation"] == "1"


def test_what_the_router_sends_to_another_region_has_the_certificate_of_its_gateway(pair):
    table = json.loads((pair.eu.state / "router.json").read_text())
    path = Path(socket_path(table["egress"], Component.ROUTER))
    headers = {"x-ipnext-upstream": "region-us", "x-ipnext-forwarded-by": "eu", "x-ipnext-generation": "1"}
    proof = {"x-ipnext-caller-proof": read_proof(proof_file(path))}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost", timeout=60) as router:
        answer = router.post("/v2/models/there/infer", json={"until": None}, headers=headers | proof)
        assert (answer.status_code, answer.headers["x-ipnext-region"]) == (200, "us"), answer.text
        assert router.post("/v2/models/there/infer", json={}, headers=headers).status_code == 403


def test_the_port_for_peers_is_for_gateways_alone(asked):
    assert asked(ComponentIdentity(DOMAIN, Component.GATEWAY, "eu")) == 200
    for identity in (
        *(ComponentIdentity(DOMAIN, other, "eu") for other in (Component.AGENT, Component.HOST, Component.ROUTER)),
        ComponentIdentity(DOMAIN, Component.CONTROL_PLANE),
        ComponentIdentity("ipnextxlocal", Component.GATEWAY, "eu"),
    ):
        assert asked(identity) is None, identity


def test_the_port_for_peers_refuses_others_and_the_past(pair, asked):
    gateway = ComponentIdentity(DOMAIN, Component.GATEWAY, "eu")
    assert asked(gateway, authority=CertificateAuthority.create()) is None
    assert asked(gateway, lasts=timedelta(seconds=-30)) is None
    context = ssl.create_default_context(cadata=pair.authority.certificate.decode())
    context.check_hostname = False
    assert get(pair, context) is None
    assert get(pair, context, "http") is None


def test_a_client_cannot_call_itself_the_gateway_of_another_region(pair):
    """A request that another gateway has sent on is not sent on again.

    That the client's is shows that its word was removed.
    """
    url = f"{pair.eu.gateway}/v2/models/there/infer"
    forged = {"x-ipnext-forwarded-by": "us;chosen-by=weight", "x-ipnext-generation": "1"}
    assert pair.eu.client.post(url, json={}, headers=forged).status_code == 200


def test_gateways_take_new_certificates_under_load_and_no_request_fails(pair, load):
    """Three times new keys and certificates for both gateways, while requests go from region to region."""
    directory = pair.certificates.control_plane().component_ca_file.parent.parent
    with load(pair.eu, "there") as clients:
        for _ in range(3):
            before = serial(pair, directory)
            pair.certificates.renew()
            until(
                lambda former=before: serial(pair, directory) != former, why=lambda: "Envoy shows another certificate"
            )
            seen = clients.answers.total()
            until(lambda count=seen: clients.answers.total() > count + 50, why=lambda: "the load goes on")
    assert not clients.bad, clients.bad[:3]
    assert set(clients.answers) == {(200, "1")}


def serial(pair, directory):
    """Of the certificate that the gateway of us shows now."""
    place = directory / "gateway-eu"
    context = ssl.create_default_context(cafile=str(place / "ca.pem"))
    context.check_hostname = False
    context.load_cert_chain(place / "certificate.pem", place / "key.pem")
    transport = httpx.HTTPTransport(verify=context)
    with httpx.Client(transport=transport, timeout=60) as client:
        answer = client.get(f"https://127.0.0.1:{pair.us.peer_port}/v2/health/live")
        return answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()["serialNumber"]
