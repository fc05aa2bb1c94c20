"""Settings of components: authentication between them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ipnext.components.certificates import CertificateFiles
from ipnext.errors import InvalidInput

_FILES = {
    "component_certificate_file": "certificate",
    "component_key_file": "key",
    "component_ca_file": "authorities",
}


class ComponentSettings(BaseSettings):
    """Certificates of a component. `ipnext dev` makes them; a cluster gives files that SPIRE or cert-manager writes."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    component_authentication: Literal["required", "none"] = "required"
    """`none`: agents require no certificate, and any caller may do everything. For debugging on one machine."""
    component_certificate_file: Path | None = None
    """Certificate chain (PEM) that authenticates this component, with its name as a URI. Read again when it changes."""
    component_key_file: Path | None = None
    """Its private key (PEM)."""
    component_ca_file: Path | None = None
    """CA certificates (PEM) by which other components are verified."""
    trust_domain: str = Field(default="ipnext.local", min_length=1)
    """First part of the components' names: `spiffe://TRUST_DOMAIN/...`. Certificates of another one are refused."""

    @property
    def certificate_files(self) -> CertificateFiles | None:
        """The files; None if none is named. InvalidInput if only some are."""
        found = {name: getattr(self, name) for name in _FILES}
        missing = [name for name, path in found.items() if path is None]
        if len(missing) == len(found):
            return None
        if missing:
            msg = (
                f"{missing[0]} (IPNEXT_{missing[0].upper()}): a component needs certificate, key and CA; "
                "give all three, or none"
            )
            raise InvalidInput(msg, field=missing[0])
        return CertificateFiles(**{_FILES[name]: path for name, path in found.items()})


def component_settings() -> ComponentSettings:
    """Read them from the environment. InvalidInput names the invalid one."""
    try:
        return ComponentSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        msg = f"{name} (IPNEXT_{name.upper()}): {first['msg']}, got {first['input']!r}"
        raise InvalidInput(msg, field=name, value=first["input"]) from error
