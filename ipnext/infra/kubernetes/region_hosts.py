"""Entry point of an agent: the pods of its region's hosts, by the settings of the environment."""

from ipnext.components.settings import ComponentSettings
from ipnext.errors import InvalidInput
from ipnext.infra.context import RegionContext
from ipnext.infra.kubernetes.documents import read_templates
from ipnext.infra.kubernetes.runtime import PodHosts
from ipnext.infra.kubernetes.settings import kubernetes_settings


def region_hosts(site: RegionContext, components: ComponentSettings) -> PodHosts:
    """Return the hosts of a region as pods. InvalidInput names the setting that does not fit."""
    if components.certificate_files is None:
        msg = (
            "component_certificate_file (IPNEXT_COMPONENT_CERTIFICATE_FILE): an agent reaches hosts in pods by its "
            "certificate; give certificate, key and CA"
        )
        raise InvalidInput(msg, field="component_certificate_file")
    settings = kubernetes_settings()
    return PodHosts(site, settings, read_templates(settings), trust_domain=components.trust_domain)
