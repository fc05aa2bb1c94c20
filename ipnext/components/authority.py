"""The certificate authority of one machine: for `ipnext dev` and tests.

A cluster brings its own (SPIRE, cert-manager).
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ipnext.components.identity import ComponentIdentity
from ipnext.components.private_files import make_private_directory, write_private_file
from ipnext.errors import InvalidInput

AUTHORITY_LASTS: Final = timedelta(days=3650)
"""The key never leaves its machine; the certificates that it signs are short-lived."""
SKEW: Final = timedelta(minutes=1)
"""A certificate is valid from this long before its creation, because clocks of two machines differ."""
KEY_NAME: Final = "ca-key.pem"
CERTIFICATE_NAME: Final = "ca.pem"


@dataclass(frozen=True, repr=False)
class IssuedCertificate:
    """A certificate and its key, both PEM. It has no `repr`: that would show the key."""

    certificate: bytes
    key: bytes
    expires_at: datetime


class CertificateAuthority:
    """Signs certificates of components with its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, name: str = "ipnext dev") -> "CertificateAuthority":
        """Draw a new key and sign its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} components")])
        now = datetime.now(UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + AUTHORITY_LASTS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def keep(cls, directory: Path) -> "CertificateAuthority":
        """Return the authority of a directory; create it if it is missing. InvalidInput if its files are invalid."""
        key_file, certificate_file = directory / KEY_NAME, directory / CERTIFICATE_NAME
        if key_file.exists() and certificate_file.exists():
            return cls._read(certificate_file, key_file)
        made = cls.create()
        made.save(key_file, certificate_file)
        return made

    def save(self, key_file: Path, certificate_file: Path) -> None:
        """Write both files, the key for this user alone."""
        make_private_directory(key_file.parent)
        write_private_file(key_file, _key_pem(self._key))
        write_private_file(certificate_file, self.certificate)

    @classmethod
    def _read(cls, certificate_file: Path, key_file: Path) -> "CertificateAuthority":
        if key_file.stat().st_mode & 0o077:
            msg = f"{key_file}: others than its owner may use it; remove {key_file.parent}, and it is made again"
            raise InvalidInput(msg, field="ca-key.pem", value=str(key_file))
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except ValueError as error:
            msg = f"{key_file.parent}: not a key and its certificate; remove the directory, and it is made again"
            raise InvalidInput(msg, field="ca-key.pem", value=str(key_file)) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            msg = f"{key_file.parent}: the certificate is of another key; remove the directory, and it is made again"
            raise InvalidInput(msg, field="ca-key.pem", value=str(key_file))
        return cls(certificate, key)

    @property
    def certificate(self) -> bytes:
        """CA certificate (PEM) by which components verify each other's."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, identity: ComponentIdentity, lasts: timedelta, *, since: datetime | None = None
    ) -> IssuedCertificate:
        """Sign a certificate of a new key, for both ends of a connection. `since` defaults to now."""
        began = since or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.component.value)])
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(began - SKEW)
            .not_valid_after(began + lasts)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(both, critical=False)
            .add_extension(names, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return IssuedCertificate(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key), began + lasts)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
