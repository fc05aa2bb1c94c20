"""Where the API listens: what other machines reach has TLS and authentication, or does not start."""

import ipaddress
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ipnext.api.__main__ import check_listener
from ipnext.client import Client
from ipnext.errors import InvalidInput
from ipnext.settings import PlatformSettings
from tests.ipnext.api.test_process import environment
from tests.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ipnext")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = tmp_path / "api.crt", tmp_path / "api.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return files


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "example.com"])
def test_an_address_that_others_reach_needs_tls_and_authentication(host, certificate):
    tls = {"api_tls_certificate_file": certificate[0], "api_tls_key_file": certificate[1]}
    with pytest.raises(InvalidInput, match=r"lacks TLS .*IPNEXT_INSECURE_BIND=true"):
        check_listener(PlatformSettings(api_host=host))
    with pytest.raises(InvalidInput, match=r"lacks TLS .* and authentication"):
        check_listener(PlatformSettings(api_host=host, authentication="none"))
    with pytest.raises(InvalidInput, match="lacks authentication"):
        check_listener(PlatformSettings(api_host=host, authentication="none", **tls))
    check_listener(PlatformSettings(api_host=host, **tls))
    check_listener(PlatformSettings(api_host=host, authentication="none", insecure_bind=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_address_needs_neither(host):
    check_listener(PlatformSettings(api_host=host, authentication="none"))


def test_half_of_tls_and_a_file_that_is_not_there_are_named(certificate, tmp_path):
    with pytest.raises(InvalidInput, match="api_tls_key_file"):
        check_listener(PlatformSettings(api_tls_certificate_file=certificate[0]))
    with pytest.raises(InvalidInput, match=r"there is no file .*none\.key"):
        check_listener(
            PlatformSettings(api_tls_certificate_file=certificate[0], api_tls_key_file=tmp_path / "none.key")
        )


@pytest.mark.usefixtures("platforms")
def test_a_process_says_why_it_does_not_listen(tmp_path):
    env = environment(tmp_path, IPNEXT_API_HOST="0.0.0.0")
    ran = subprocess.run(
        [sys.executable, "-m", "ipnext.api"],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (ran.returncode, ran.stderr.count("Traceback")) == (2, 0)
    assert "IPNEXT_INSECURE_BIND=true" in ran.stderr


@pytest.mark.usefixtures("platforms")
def test_an_api_with_a_certificate_speaks_tls_with_clients_that_know_it(tmp_path, rooms, certificate, monkeypatch):
    env = environment(
        tmp_path, IPNEXT_API_TLS_CERTIFICATE_FILE=str(certificate[0]), IPNEXT_API_TLS_KEY_FILE=str(certificate[1])
    )
    url = f"https://127.0.0.1:{env['IPNEXT_API_PORT']}"
    with (tmp_path / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ipnext.api"], env=env, stdout=log, stderr=log)
    try:
        monkeypatch.setenv("IPNEXT_CA_FILE", str(certificate[0]))
        with Client(url, api_key=rooms.admin_key) as client:

            def knows_me():
                assert process.poll() is None, (tmp_path / "api.log").read_text()
                try:
                    return client.who_am_i().name == "admin"
                except Exception as error:  # noqa: BLE001 - it may not listen yet
                    return "refused" not in str(error) and pytest.fail(str(error))

            until(knows_me)
            cookie = client._http.post("/v1/sessions").headers["set-cookie"]
            assert "Secure" in cookie
        monkeypatch.delenv("IPNEXT_CA_FILE")
        with (
            Client(url, api_key=rooms.admin_key) as stranger,
            pytest.raises(Exception, match=r"(?i)certificate"),
        ):
            stranger.who_am_i()
    finally:
        process.kill()
        process.wait()
