"""Runs an Envoy before one host, so that the agent and routers on other machines reach it with their certificates.

`python -m ipnext.infra.host_proxy_process --region R --host ADDRESS --port P --sockets DIR --state DIR` writes the
configuration and becomes Envoy. The certificate is that of `IPNEXT_COMPONENT_...`; its name is the region's host.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import structlog
from cryptography.x509 import SubjectAlternativeName, UniformResourceIdentifier, load_pem_x509_certificate

from ipnext.components.certificates import CertificateFiles, server_context
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.private_files import keep_new_files_private, make_private_directory
from ipnext.components.settings import component_settings
from ipnext.components.sockets import keep_caller_proof, socket_url
from ipnext.errors import InvalidInput, IPnextError
from ipnext.infra.envoy.config import as_json
from ipnext.infra.envoy.host_proxy import CALLERS, HostProxy, configuration
from ipnext.infra.envoy.tls import PeerTls
from ipnext.infra.gateway.process import envoy_binary
from ipnext.infra.process.atomic_file import replace_file

CONFIG_FILE: Final = "envoy.json"
HIGHEST_PORT: Final = 65535
_PROOF: Final = re.compile(r"[A-Za-z0-9_-]+")
FLAGS: Final = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1")


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ends with status 2 and a usage text on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m ipnext.infra.host_proxy_process",
        description="An Envoy before one host: mTLS on a port, the host's Unix sockets behind it.",
    )
    parser.add_argument("--region", required=True, help="name of the region")
    parser.add_argument("--host", required=True, type=_address, help="IP address on which agent and routers reach it")
    parser.add_argument("--port", required=True, type=_port, help="its port, from 1 to 65535")
    parser.add_argument("--sockets", required=True, type=Path, help="directory of the host's Unix sockets")
    parser.add_argument("--state", required=True, type=Path, help="private directory for its configuration")
    return parser.parse_args(arguments)


def _address(text: str) -> str:
    return str(ip_address(text))


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number <= HIGHEST_PORT:
        raise ValueError
    return number


def prepare(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Write the configuration; return the command of Envoy.

    The proofs of the callers are created if the host has not started yet. InvalidInput without a certificate and the
    key that fits it, OSError if the directories are not this user's.
    """
    settings = component_settings()
    files = settings.certificate_files
    if files is None:
        msg = (
            "component_certificate_file (IPNEXT_COMPONENT_CERTIFICATE_FILE): the proxy of a host needs a certificate, "
            "its key and the CA of its callers; give the three files"
        )
        raise InvalidInput(msg, field="component_certificate_file")
    files.stamp()
    server_context(files, lambda _: True)  # Envoy would listen, and end each connection
    own = ComponentIdentity(settings.trust_domain, Component.HOST, arguments.region)
    _check_name(files, own)
    state = arguments.state.absolute()
    _check_state(state)
    make_private_directory(state)
    url = socket_url(arguments.sockets.absolute())
    proxy = HostProxy(
        own=own,
        host=arguments.host,
        port=arguments.port,
        url=url,
        proofs={caller: _keep_proof(url, caller) for caller in CALLERS},
        tls=PeerTls(files=files, trust_domain=settings.trust_domain, secrets=state),
    )
    for path, content in proxy.tls.secret_files().items():
        replace_file(path, as_json(content))
    config = state / CONFIG_FILE
    replace_file(config, as_json(configuration(proxy)))
    return (str(envoy_binary()), "--config-path", str(config), *FLAGS)


def _keep_proof(url: str, caller: Component) -> str:
    """Return a caller's proof. InvalidInput if the host, which may write it, has made a format of Envoy of it."""
    proof = keep_caller_proof(url, caller)
    if not _PROOF.fullmatch(proof):
        msg = f"--sockets: the proof of {caller} has other characters than letters, digits, - and _"
        raise InvalidInput(msg, field="sockets")
    return proof


def _check_name(files: CertificateFiles, own: ComponentIdentity) -> None:
    """Raise InvalidInput unless the certificate is this component's: its callers would refuse another one's."""
    extensions = load_pem_x509_certificate(files.certificate.read_bytes()).extensions
    names = extensions.get_extension_for_class(SubjectAlternativeName).value
    found = names.get_values_for_type(UniformResourceIdentifier)
    if found != [own.uri]:
        msg = f"{files.certificate}: the certificate names {', '.join(found)[:300] or 'nothing'}; allowed: {own.uri}"
        raise InvalidInput(msg, field="component_certificate_file", value=str(files.certificate), allowed=(own.uri,))


def _check_state(state: Path) -> None:
    """Raise InvalidInput if the directory is another's: it becomes private, and its files are replaced."""
    if state.is_dir() and any(state.iterdir()) and not (state / CONFIG_FILE).exists():
        msg = f"--state: {state} has files of others; allowed: a directory that is new, empty or of a former proxy"
        raise InvalidInput(msg, field="state", value=str(state))


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: RET503 - execv does not return
    """Become Envoy; return the exit status if that is not possible."""
    keep_new_files_private()
    given = read_arguments(arguments)
    try:
        command = prepare(given)
    except IPnextError as error:
        structlog.get_logger().error("proxy of a host ends", code=error.code, reason=error.message)
        return error.exit_status
    except OSError as error:
        structlog.get_logger().error("proxy of a host ends", reason=str(error))
        return 1
    os.execv(command[0], command)  # noqa: S606 - Envoy gets the signals, and its end is this process's


if __name__ == "__main__":
    sys.exit(main())
