"""Envoy's side of mTLS: certificates by SDS from files that it watches, and the accepted names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ipnext.components.certificates import CertificateFiles
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.infra.envoy.openai_config import type_url as _type

Json = dict[str, Any]

_OWN: Final = "own"
_AUTHORITIES: Final = "authorities"


@dataclass(frozen=True, kw_only=True)
class PeerTls:
    """The credentials of an Envoy: a gateway with those of other regions, or the proxy of a host."""

    files: CertificateFiles
    trust_domain: str
    secrets: Path
    """Directory of the two files that name the certificates for Envoy."""

    def secret_files(self) -> Mapping[Path, Json]:
        """Return the files that Envoy reads its secrets from, with their content."""
        watched = {"watched_directory": {"path": str(self.files.certificate.parent)}}
        own = {
            "certificate_chain": {"filename": str(self.files.certificate)},
            "private_key": {"filename": str(self.files.key)},
            **watched,
        }
        authorities = {
            "trusted_ca": {"filename": str(self.files.authorities)},
            "watched_directory": {"path": str(self.files.authorities.parent)},
        }
        return {
            self._file(_OWN): _secret(_OWN, {"tls_certificate": own}),
            self._file(_AUTHORITIES): _secret(_AUTHORITIES, {"validation_context": authorities}),
        }

    def upstream(self, region: str) -> Json:
        """Return the transport socket of connections to the gateway of another region."""
        expected = ComponentIdentity(self.trust_domain, Component.GATEWAY, region).uri
        context = {
            "@type": _type("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
            "common_tls_context": self._common({"exact": expected}),
        }
        return _socket(context)

    def downstream(self) -> Json:
        """Return the transport socket of the listener for gateways of other regions."""
        names = f"spiffe://{self.trust_domain.replace('.', '[.]')}/region/[A-Za-z0-9._-]+/{Component.GATEWAY}"
        return self._downstream({"safe_regex": {"regex": names}})

    def downstream_of(self, callers: Iterable[ComponentIdentity]) -> Json:
        """Return the transport socket of a listener for these callers."""
        return self._downstream(*({"exact": caller.uri} for caller in callers))

    def _downstream(self, *matchers: Json) -> Json:
        context = {
            "@type": _type("extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": True,
            "common_tls_context": self._common(*matchers),
        }
        return _socket(context)

    def _common(self, *matchers: Json) -> Json:
        names = [{"san_type": "URI", "matcher": matcher} for matcher in matchers]
        return {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [self._config(_OWN)],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": names},
                "validation_context_sds_secret_config": self._config(_AUTHORITIES),
            },
        }

    def _config(self, name: str) -> Json:
        source = {"path_config_source": {"path": str(self._file(name))}, "resource_api_version": "V3"}
        return {"name": name, "sds_config": source}

    def _file(self, name: str) -> Path:
        return self.secrets / f"sds-{name}.json"


def _secret(name: str, content: Json) -> Json:
    secret = {"@type": _type("extensions.transport_sockets.tls.v3.Secret"), "name": name, **content}
    return {"resources": [secret]}


def _socket(context: Json) -> Json:
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}
