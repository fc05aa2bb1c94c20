"""Where a gateway may listen, and what it needs for it."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ipnext.errors import InvalidInput
from ipnext.infra.envoy.public_listener import PublicListener, public_listener
from ipnext.infra.settings import AgentSettings


def write_pair(directory, name="tls", *, common="localhost", password=None):
    """A certificate of its own and its key, each renamed into place; their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    hidden = NoEncryption() if password is None else BestAvailableEncryption(password)
    contents = {
        "crt": certificate.public_bytes(Encoding.PEM),
        "key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden),
    }
    found = []
    for suffix, content in contents.items():
        new = directory / f".{name}.{suffix}"
        new.write_bytes(content)
        found.append(new.replace(directory / f"{name}.{suffix}"))
    return tuple(found)


def settings(**given):
    return AgentSettings(**given)


def test_a_loopback_address_needs_nothing():
    assert public_listener(settings()).url_at(80) == "http://127.0.0.1:80"
    assert public_listener(settings(gateway_host="::1")).url_at(80) == "http://[::1]:80"


@pytest.mark.parametrize(
    ("host", "local"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1"), ("127.0.0.2", "127.0.0.2")]
)
def test_this_machine_reaches_a_listener_on_all_addresses_by_loopback(host: str, local: str) -> None:
    assert PublicListener(host=host).local_host == local


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::"])
def test_another_address_needs_tls_or_the_operators_word(host, tmp_path):
    with pytest.raises(InvalidInput, match="IPNEXT_INSECURE_BIND=true lets it"):
        public_listener(settings(gateway_host=host))
    assert public_listener(settings(gateway_host=host, insecure_bind=True)).host == host
    certificate, key = write_pair(tmp_path)
    found = public_listener(
        settings(gateway_host=host, gateway_tls_certificate_file=certificate, gateway_tls_key_file=key)
    )
    assert found.url_at(443).startswith("https://")
    assert "0.0.0.0" not in found.url_at(443)


def test_the_flag_of_the_api_is_that_of_the_gateway(monkeypatch):
    monkeypatch.setenv("IPNEXT_INSECURE_BIND", "true")
    monkeypatch.setenv("IPNEXT_AGENT_GATEWAY_HOST", "0.0.0.0")
    monkeypatch.setenv("IPNEXT_AGENT_GATEWAY_URL", "http://gateway.example.com:81/")
    assert public_listener(AgentSettings()).url_at(1) == "http://gateway.example.com:81"


def test_what_is_no_certificate_and_its_key_is_refused_and_named(tmp_path):
    certificate, key = write_pair(tmp_path)
    other = write_pair(tmp_path, "other")[1]
    locked = write_pair(tmp_path, "locked", password=b"secret")
    (tmp_path / "below").mkdir()
    below = write_pair(tmp_path / "below")[1]
    for pair, words in (
        ((certificate, None), "gateway_tls_key_file"),
        ((None, key), "gateway_tls_certificate_file"),
        ((certificate, other), "no certificate and its key"),
        ((certificate, tmp_path / "none.key"), "no certificate and its key"),
        (locked, "without a password"),
        ((certificate, below), "in the directory of the certificate"),
    ):
        with pytest.raises(InvalidInput, match=words):
            public_listener(settings(gateway_tls_certificate_file=pair[0], gateway_tls_key_file=pair[1]))


@pytest.mark.parametrize("host", ["localhost", "gateway.example.com", ""])
def test_a_name_is_no_address(host):
    with pytest.raises(InvalidInput, match="no IP address"):
        public_listener(settings(gateway_host=host))
