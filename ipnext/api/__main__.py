"""`python -m ipnext.api`: settings from the environment, the real adapters behind the API, one uvicorn server."""

import logging
import signal
import sys

from ipnext.process.garbage_collection import collect_after_imports, collect_rarely

with collect_after_imports():
    import structlog

    from ipnext.api.app import create_app
    from ipnext.api.server import Server
    from ipnext.api.workflow_engine.temporal import TemporalLifecycle
    from ipnext.artifacts.stores.locations import open_store
    from ipnext.components.private_files import keep_new_files_private
    from ipnext.errors import EXIT_OK, InvalidInput, IPnextError
    from ipnext.infra.local_agents import LocalProcessInfrastructure
    from ipnext.network.loopback import check_bind
    from ipnext.platform.access.key_uses import KeyUseCollector
    from ipnext.platform.access.lists import AccessPublisher
    from ipnext.platform.access.settings import note_settings
    from ipnext.process.end import end_process
    from ipnext.process.settings_only import read_no_arguments
    from ipnext.settings import PlatformSettings, platform_settings
    from ipnext.store.store import Store

OBSERVE_SECONDS = 3.0
"""Longest call to an agent: the API only observes, and answers without a region that takes longer than a second."""


def main() -> int:
    """Serve until SIGTERM or SIGINT. Exit status 0, or that of the error that prevented the start."""
    read_no_arguments("ipnext.api", "Serve IPnext's API until SIGTERM or SIGINT.")
    keep_new_files_private()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn ends in order, then passes the signal on
        signal.signal(number, _ignore_signal)
    try:
        serve(platform_settings())
    except IPnextError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return EXIT_OK


def serve(settings: PlatformSettings) -> None:
    """Open the adapters, migrate the store, serve, close the adapters.

    InvalidInput if the address would be open to all callers.
    """
    check_listener(settings)
    store = Store.open(settings.database_url)
    store.migrate()
    artifacts = open_store(
        settings.artifacts_uri, endpoint_url=settings.s3_endpoint_url, reserve_bytes=settings.disk_reserve_bytes
    )
    lifecycle = TemporalLifecycle(ui_url=settings.temporal_ui_url, timing=settings.timing, access=settings)
    agents = LocalProcessInfrastructure(settings.agents, timeout_seconds=OBSERVE_SECONDS, components=settings)
    with agents as infrastructure:
        app = create_app(store, artifacts, infrastructure, lifecycle, settings)
        provider = note_settings(store, app.state.platform.access_settings)
        server = Server(app, settings, app.state.platform.stream)
        collect_rarely()
        publisher, uses = (
            AccessPublisher(store, infrastructure, provider=provider),
            KeyUseCollector(store, infrastructure),
        )
        with publisher.running(), uses.running():
            server.run()
    store.close()


def check_listener(settings: PlatformSettings) -> None:
    """Refuse an address that other machines reach, unless TLS and authentication are on or the operator insists."""
    certificate, key = settings.api_tls_certificate_file, settings.api_tls_key_file
    if (certificate is None) != (key is None):
        missing = "api_tls_key_file" if key is None else "api_tls_certificate_file"
        msg = f"{missing} (IPNEXT_{missing.upper()}): TLS needs a certificate and its key; give both, or none"
        raise InvalidInput(msg, field=missing)
    for name, file in (("api_tls_certificate_file", certificate), ("api_tls_key_file", key)):
        if file is not None and not file.is_file():
            msg = f"{name} (IPNEXT_{name.upper()}): there is no file {file}"
            raise InvalidInput(msg, field=name, value=str(file))
    lacks = [] if certificate is not None else ["TLS (IPNEXT_API_TLS_CERTIFICATE_FILE, IPNEXT_API_TLS_KEY_FILE)"]
    lacks += [] if settings.authentication == "required" else ["authentication (IPNEXT_AUTHENTICATION=required)"]
    check_bind(
        settings.api_host,
        field="api_host",
        name="api_host (IPNEXT_API_HOST)",
        lacks=lacks,
        insecure_bind=settings.insecure_bind,
    )


def _ignore_signal(_number: int, _frame: object) -> None:
    """Do nothing: the server has ended, and main returns."""


if __name__ == "__main__":
    end_process(main())
