"""An authority of a test cluster, and the certificates of its servers on the loopback."""

import functools
import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LIFE = timedelta(days=2)
NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
PEM, KEY_FORM = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


@dataclass(frozen=True)
class Authority:
    """A certificate that signs others."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        """Its certificate, as clients get it."""
        return self.certificate.public_bytes(PEM)

    def write_server(self, directory: Path) -> tuple[Path, Path]:
        """Write the certificate of a server at 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(each) for each in NAMES] + [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = _builder("server", self.certificate.subject, key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_issued_by(self.certificate), critical=False)
        files = directory / "server.crt", directory / "server.key"
        files[0].write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(PEM))
        files[1].write_bytes(key.private_bytes(PEM, KEY_FORM, serialization.NoEncryption()))
        return files


@functools.cache
def authority() -> Authority:
    """Return the authority of this process."""
    key, name = ec.generate_private_key(ec.SECP256R1()), _name("test cluster")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    uses = dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True)
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = x509.KeyUsage(**uses, **dict.fromkeys((*others, "encipher_only", "decipher_only"), False))
    builder = _builder("test cluster", name, key.public_key()).add_extension(usage, critical=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
    return Authority(key, made)


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS settings of a server; the files are read at once."""
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(certificate, key)
    return found


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now, number = datetime.now(UTC), x509.random_serial_number()
    return x509.CertificateBuilder(issuer, _name(name), key, number, now - timedelta(minutes=5), now + LIFE)


def _issued_by(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)
