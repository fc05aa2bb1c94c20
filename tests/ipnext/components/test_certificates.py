"""The authority of one machine, the files of its components, and what a TLS connection checks."""

import asyncio
import ssl
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from ipnext.components.authority import CertificateAuthority
from ipnext.components.certificates import client_context, server_context
from ipnext.components.identity import Component, ComponentIdentity, parse_identity
from ipnext.components.issuing import Issuer
from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput

AGENT = ComponentIdentity("ipnext.local", Component.AGENT, "us-east")
PLANE = ComponentIdentity("ipnext.local", Component.CONTROL_PLANE)


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://ipnext.local/control-plane",
        "spiffe://example.org/region/us-east/agent",
        "spiffe://a/region/r/router",
        "spiffe://a/region/r/host",
        "spiffe://a/region/r/gateway",
    ],
)
def test_a_name_is_read_as_it_is_written(uri):
    assert parse_identity(uri).uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "https://ipnext.local/control-plane",
            "spiffe://ipnext.local",
            "spiffe:///control-plane",
            "",
            "control-plane",
        ),
        *("spiffe://ipnext.local/agent", "spiffe://a/region/r/control-plane", "spiffe://a/region//agent"),
        *(
            "spiffe://a/region/r/agent/more",
            "spiffe://a/region/r/admin",
            "spiffe://A/control-plane",
            "spiffe://a/region/r%2Fx/agent",
        ),
    ],
)
def test_what_names_no_component_is_refused(uri):
    with pytest.raises(InvalidInput):
        parse_identity(uri)


def modes(directory):
    """Mode of everything that is not a link."""
    found = [directory, *directory.rglob("*")]
    return {stat.S_IMODE(path.lstat().st_mode) for path in found if not path.is_symlink()}


def issuer(directory, authority=None, *, clock=lambda: 0.0, lasts_seconds=3600.0):
    authority = authority or CertificateAuthority.keep(directory / "authority")
    return Issuer(authority, directory / "issued", lasts_seconds=lasts_seconds, renewed_at=0.5, clock=clock)


def test_keys_and_certificates_are_for_their_owner_alone(tmp_path):
    made = issuer(tmp_path)
    made.issue([AGENT, PLANE])
    assert modes(tmp_path / "authority") == {0o700, 0o600}
    for identity in (AGENT, PLANE):
        assert modes(made.files(identity).key.parent) == {0o700, 0o600}


def test_an_authority_is_kept(tmp_path):
    first = CertificateAuthority.keep(tmp_path)
    assert CertificateAuthority.keep(tmp_path).certificate == first.certificate


def test_an_authority_whose_key_others_may_read_is_refused(tmp_path):
    CertificateAuthority.keep(tmp_path)
    (tmp_path / "ca-key.pem").chmod(0o640)
    with pytest.raises(InvalidInput, match="others than its owner may use it"):
        CertificateAuthority.keep(tmp_path)


def test_an_authority_whose_files_do_not_fit_is_refused(tmp_path):
    CertificateAuthority.keep(tmp_path)
    (tmp_path / "ca.pem").write_bytes(CertificateAuthority.create().certificate)
    with pytest.raises(InvalidInput, match="of another key"):
        CertificateAuthority.keep(tmp_path)


def test_a_certificate_names_its_component_and_ends_soon():
    before = datetime.now(UTC)
    issued = CertificateAuthority.create().issue(AGENT, timedelta(hours=24))
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://ipnext.local/region/us-east/agent"]
    assert before + timedelta(hours=23) < certificate.not_valid_after_utc <= datetime.now(UTC) + timedelta(hours=24)
    assert b"PRIVATE" not in repr(issued).encode()


def test_certificates_are_replaced_when_they_are_due_and_not_before(tmp_path):
    now = [0.0]
    made = issuer(tmp_path, clock=lambda: now[0], lasts_seconds=100.0)
    made.issue([AGENT])
    files = made.files(AGENT)
    first, stamp = files.certificate.read_bytes(), files.stamp()
    now[0] = 49.0
    made.renew()
    assert (files.certificate.read_bytes(), files.stamp()) == (first, stamp)
    now[0] = 50.0
    made.renew()
    second = files.certificate.read_bytes()
    assert second != first
    assert files.stamp() != stamp
    client_context(files, lambda _: True)  # certificate and key fit
    now[0] = 99.0
    made.renew()
    assert files.certificate.read_bytes() == second
    assert len([path for path in files.key.parent.iterdir() if not path.is_symlink()]) == 1, "former keys are removed"


@pytest.mark.parametrize("missing", ["component_certificate_file", "component_key_file", "component_ca_file"])
def test_a_component_needs_all_three_files(tmp_path, missing):
    names = ("component_certificate_file", "component_key_file", "component_ca_file")
    settings = ComponentSettings(**{name: tmp_path / name for name in names if name != missing})
    with pytest.raises(InvalidInput, match=missing):
        _ = settings.certificate_files


def test_files_that_do_not_fit_are_refused_without_their_content(tmp_path):
    made = issuer(tmp_path)
    made.issue([AGENT])
    files = made.files(AGENT)
    text = files.key.read_text()
    files.key.write_text("nothing")
    with pytest.raises(InvalidInput) as caught:
        server_context(files, lambda _: True)
    assert str(files.key) in caught.value.message
    assert text.splitlines()[1] not in caught.value.message


async def exchanged(server, client):
    """What a client reads of a server that greets the name of its peer.

    An ssl.SSLError, or b"" if it is refused later.
    """

    async def greet(_, writer):
        writer.write(writer.get_extra_info("ssl_object").peer.uri.encode())
        writer.close()

    listening = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        try:
            return await reader.read()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def greeted(server, client):
    """Whether the server has spoken to the client: with TLS 1.3 it refuses after the client's own handshake."""
    with suppress(ssl.SSLError, ConnectionError):
        return bool(await exchanged(server, client))
    return False


def ours(peer):
    return peer.trust_domain == "ipnext.local"


@pytest.fixture
def both(tmp_path):
    made = issuer(tmp_path)
    made.issue([AGENT, PLANE])
    return made


async def test_both_ends_know_each_other(listeners, both):
    server = server_context(both.files(AGENT), ours)
    client = client_context(both.files(PLANE), lambda peer: peer == AGENT)
    assert await exchanged(server, client) == b"spiffe://ipnext.local/control-plane"


async def test_a_server_of_another_name_is_refused(listeners, both):
    server = server_context(both.files(PLANE), ours)
    client = client_context(both.files(PLANE), lambda peer: peer == AGENT)
    with pytest.raises(ssl.SSLCertVerificationError, match="not the component that is expected"):
        await exchanged(server, client)


async def test_a_client_of_another_trust_domain_is_refused(listeners, both, tmp_path):
    domain = ComponentIdentity("other.local", Component.CONTROL_PLANE)
    other = issuer(tmp_path / "other", CertificateAuthority.keep(tmp_path / "authority"))
    other.issue([domain])
    server = server_context(both.files(AGENT), ours)
    assert await greeted(server, client_context(both.files(PLANE), ours))
    assert not await greeted(server, client_context(other.files(domain), ours))


async def test_a_client_of_another_authority_and_one_without_a_certificate_are_refused(listeners, both, tmp_path):
    stranger = issuer(tmp_path / "stranger", CertificateAuthority.create())
    stranger.issue([PLANE])
    files = stranger.files(PLANE)
    files.authorities.write_bytes(both.files(PLANE).authorities.read_bytes())  # it trusts the server: that is no secret
    anonymous = ssl.create_default_context(cafile=str(both.files(PLANE).authorities))
    anonymous.check_hostname = False
    for client in (client_context(files, ours), anonymous):
        assert not await greeted(server_context(both.files(AGENT), ours), client)


async def test_a_server_of_another_authority_is_refused(listeners, both, tmp_path):
    stranger = issuer(tmp_path / "stranger", CertificateAuthority.create())
    stranger.issue([AGENT])
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        await exchanged(server_context(stranger.files(AGENT), ours), client_context(both.files(PLANE), ours))


async def test_an_expired_certificate_is_refused_at_either_end(listeners, tmp_path):
    authority = CertificateAuthority.keep(tmp_path / "authority")
    made = issuer(tmp_path, authority)
    made.issue([AGENT, PLANE])
    gone = issuer(tmp_path / "gone", authority, lasts_seconds=-30.0)  # a minute of skew before, so it was good once
    gone.issue([AGENT, PLANE])
    assert not await greeted(server_context(made.files(AGENT), ours), client_context(gone.files(PLANE), ours))
    with pytest.raises(ssl.SSLError, match="expired"):
        await exchanged(server_context(gone.files(AGENT), ours), client_context(made.files(PLANE), ours))
