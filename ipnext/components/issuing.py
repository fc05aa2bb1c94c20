"""Renews the certificates of a machine's components: issued as files, and again before they expire."""

import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Final

from ipnext.components.authority import CertificateAuthority
from ipnext.components.certificates import CertificateFiles
from ipnext.components.identity import ComponentIdentity
from ipnext.components.private_files import replace_file_set

CERTIFICATE: Final = "certificate.pem"
KEY: Final = "key.pem"
AUTHORITIES: Final = "ca.pem"


class Issuer:
    """Writes the files of components below a directory, one directory for each, for this user alone."""

    def __init__(
        self,
        authority: CertificateAuthority,
        directory: Path,
        *,
        lasts_seconds: float,
        renewed_at: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`renewed_at` is the share of a certificate's life after which it is replaced."""
        self._authority = authority
        self._directory = directory
        self._lasts = timedelta(seconds=lasts_seconds)
        self._renewed_after = lasts_seconds * renewed_at
        self._clock = clock
        self._due: dict[ComponentIdentity, float] = {}

    def files(self, identity: ComponentIdentity) -> CertificateFiles:
        """Return the files of a component."""
        name = identity.component if identity.region is None else f"{identity.component}-{identity.region}"
        place = self._directory / name
        return CertificateFiles(place / CERTIFICATE, place / KEY, place / AUTHORITIES)

    def issue(self, identities: Iterable[ComponentIdentity]) -> None:
        """Write new certificates, and renew them from now on."""
        for identity in identities:
            issued = self._authority.issue(identity, self._lasts)
            content = {CERTIFICATE: issued.certificate, KEY: issued.key, AUTHORITIES: self._authority.certificate}
            replace_file_set(self.files(identity).certificate.parent, content)
            self._due[identity] = self._clock() + self._renewed_after

    def renew(self) -> None:
        """Replace due certificates. OSError if that fails: the next call retries."""
        now = self._clock()
        self.issue([identity for identity, due in self._due.items() if due <= now])
