"""The proxy of a host admits the callers of the table of components, each to its own socket."""

from pathlib import Path

import pytest

from ipnext.components.authorisation import RULES, callers_of
from ipnext.components.certificates import CertificateFiles
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.infra.envoy.host_proxy import CALLERS, HostProxy, configuration
from ipnext.infra.envoy.tls import PeerTls
from ipnext.names import PROOF_HEADER

FILES = CertificateFiles(*(Path("/c") / name for name in ("certificate.pem", "key.pem", "ca.pem")))
PROOFS = {caller: f"proof of {caller}" for caller in CALLERS}
PATHS = sorted({f"/{'/'.join(rule.steps)}" for rule in RULES if rule.listener is Component.HOST})


@pytest.fixture(scope="module")
def manager():
    proxy = HostProxy(
        own=ComponentIdentity("a.local", Component.HOST, "north"),
        host="10.0.0.7",
        port=8443,
        url="unix:///run/h",
        proofs=PROOFS,
        tls=PeerTls(files=FILES, trust_domain="a.local", secrets=Path("/s")),
    )
    (listener,) = configuration(proxy)["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


@pytest.fixture(scope="module")
def routes(manager):
    (host,) = manager["route_config"]["virtual_hosts"]
    return host["routes"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_has_a_route_for_each_component_that_may_call_it(routes, path):
    found = {route["route"]["cluster"] for route in routes if route["match"].get("path_separated_prefix") == path}
    assert found == {str(caller) for caller in callers_of(Component.HOST, path) if caller in CALLERS}


def test_each_route_asks_for_the_name_of_its_caller_and_sends_that_callers_proof(routes):
    for route in routes[:-1]:
        caller = route["route"]["cluster"]
        (header,) = route["match"]["headers"]
        pattern = header["string_match"]["safe_regex"]["regex"]
        assert pattern.endswith(f";URI=spiffe://a[.]local/region/north/{caller}")
        (added,) = route["request_headers_to_add"]
        assert added["header"] == {"key": PROOF_HEADER, "value": f"proof of {caller}"}
        assert added["append_action"] == "OVERWRITE_IF_EXISTS_OR_ADD"


def test_whatever_else_is_refused(routes):
    assert routes[-1]["match"] == {"prefix": "/"}
    assert routes[-1]["direct_response"]["status"] == 403


def test_the_caller_is_named_by_its_certificate_alone(manager):
    assert manager["forward_client_cert_details"] == "SANITIZE_SET"
