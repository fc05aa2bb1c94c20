"""Certificates of the embedded platform's components: issued below its state directory, and renewed while it runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from ipnext.components.authority import CertificateAuthority
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.components.private_files import make_private_directory
from ipnext.components.settings import ComponentSettings
from ipnext.settings import DevSettings

_HOUR_SECONDS: Final = 3600.0


class DevCertificates:
    """A CA with certificates for the control plane and each agent; none if authentication is off."""

    def __init__(
        self, directory: Path, regions: Sequence[str], components: ComponentSettings, settings: DevSettings
    ) -> None:
        """Raise InvalidInput if the existing CA is invalid."""
        self._components = components
        self._issuer: Issuer | None = None
        if components.component_authentication == "none":
            return
        make_private_directory(directory)
        self._issuer = Issuer(
            CertificateAuthority.keep(directory / "authority"),
            directory,
            lasts_seconds=settings.dev_certificate_hours * _HOUR_SECONDS,
            renewed_at=settings.dev_certificate_renewal,
        )
        agents = [self._identity(Component.AGENT, region) for region in regions]
        gateways = [self._identity(Component.GATEWAY, region) for region in regions]
        self._issuer.issue([self._identity(Component.CONTROL_PLANE), *agents, *gateways])

    @property
    def secure(self) -> bool:
        """Whether there are certificates."""
        return self._issuer is not None

    def control_plane(self) -> ComponentSettings:
        """Return the credentials of API, workers and this process."""
        return self._settings(self._identity(Component.CONTROL_PLANE))

    def environment(self, region: str | None = None) -> Mapping[str, str]:
        """Return the settings of a region's agent, or of the control plane."""
        component = Component.CONTROL_PLANE if region is None else Component.AGENT
        found = self._settings(self._identity(component, region)).model_dump(exclude_none=True)
        given = {f"IPNEXT_{name.upper()}": str(value) for name, value in found.items()}
        if region is not None and self._issuer is not None:
            files = self._issuer.files(self._identity(Component.GATEWAY, region))
            named = {"CERTIFICATE": files.certificate, "KEY": files.key, "CA": files.authorities}
            given |= {f"IPNEXT_AGENT_GATEWAY_{name}_FILE": str(path) for name, path in named.items()}
        return given

    def renew(self) -> None:
        """Replace due certificates."""
        if self._issuer is None:
            return
        try:
            self._issuer.renew()
        except OSError as error:
            structlog.get_logger().error("certificates not renewed, tried again", reason=str(error))

    def _identity(self, component: Component, region: str | None = None) -> ComponentIdentity:
        return ComponentIdentity(self._components.trust_domain, component, region)

    def _settings(self, identity: ComponentIdentity) -> ComponentSettings:
        if self._issuer is None:
            return ComponentSettings(component_authentication="none")
        files = self._issuer.files(identity)
        return ComponentSettings(
            component_authentication="required",
            trust_domain=identity.trust_domain,
            component_certificate_file=files.certificate,
            component_key_file=files.key,
            component_ca_file=files.authorities,
        )
