"""What may be read for a source: directories, buckets and servers that the operator allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ipnext.artifacts.sources import not_allowed
from ipnext.artifacts.stores.locations import readable_for
from ipnext.model.access.rights import Principal
from ipnext.model.registry.sources import Reach
from ipnext.settings import PlatformSettings
from ipnext.sources.credentials import read_credentials

ANYWHERE = Path("/")


def reach_of(asker: Principal, settings: PlatformSettings) -> Reach:
    """Return what sources of a manifest may read that a principal applies."""
    if asker.does_everything and settings.administrators_read == "any":
        return Reach.ANY
    return Reach.SHARED if asker.publishes_for_all else Reach.OWNER


@dataclass(frozen=True, slots=True)
class ReadAccess:
    """What a source of an owner's model may read."""

    roots: tuple[Path, ...] = ()
    buckets: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    reach: Reach = Reach.OWNER
    s3_endpoint_url: str | None = None
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    """URL of a server -> the value of the header `Authorization` for it."""

    @classmethod
    def of(cls, settings: PlatformSettings, owner: str, reach: Reach) -> Self:
        """Return what sources of an owner may read by the settings now."""
        shared = reach is not Reach.OWNER
        return cls(
            roots=tuple(map(Path, readable_for(owner, map(str, settings.artifact_roots), shared=shared))),
            buckets=readable_for(owner, settings.artifact_buckets, shared=shared),
            urls=readable_for(owner, settings.source_urls, shared=shared),
            reach=reach if settings.administrators_read == "any" else min(reach, Reach.SHARED),
            s3_endpoint_url=settings.s3_endpoint_url,
            credentials=read_credentials(settings.source_credentials_file),
        )

    @property
    def readable_roots(self) -> tuple[Path, ...]:
        """Directories below which files may be read."""
        return (ANYWHERE,) if self.reach is Reach.ANY else self.roots

    def check_url(self, url: str) -> None:
        """Check the URL of a server. Raises PathNotAllowed."""
        if self.reach is not Reach.ANY and not any(_covers(allowed, url) for allowed in self.urls):
            fault = f"{url!r} may not be read"
            raise not_allowed(fault, url, "urls", self.urls, setting="IPNEXT_SOURCE_URLS")

    def authorization_for(self, url: str) -> str | None:
        """Return the header `Authorization` for a URL: that of the longest server's URL that it begins with."""
        found = [base for base in self.credentials if _covers(base, url)]
        return self.credentials[max(found, key=len)] if found else None


def _covers(allowed: str, url: str) -> bool:
    """Return whether a URL is an allowed one, or below it."""
    base = allowed.rstrip("/")
    return url.rstrip("/") == base or (url.startswith(f"{base}/") and not {".", ".."} & set(url.split("/")))
