"""`python -m ipnext.api`: settings from the environment, the real rooms behind the API, one uvicorn server."""

import logging
import signal
import socket
import sys

import structlog
import uvicorn

from ipnext.api.app import create_app
from ipnext.api.stream import Stream
from ipnext.api.temporal_lifecycle import TemporalLifecycle
from ipnext.artifacts.opening import open_store
from ipnext.collecting import collect_rarely
from ipnext.errors import EXIT_OK, IPnextError
from ipnext.infra.local_process import LocalProcessInfrastructure
from ipnext.process_end import end_process
from ipnext.settings import PlatformSettings, platform_settings
from ipnext.store.session import Store

OBSERVE_SECONDS = 3.0
"""Longest call to an agent: the API only observes, and answers without a region that takes longer than a second."""


class Server(uvicorn.Server):
    """Ends the open streams before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, stream: Stream) -> None:
        super().__init__(config)
        self._stream = stream

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the streams, then as uvicorn does."""
        await self._stream.close()
        await super().shutdown(sockets)


def main() -> int:
    """Serve until SIGTERM or SIGINT. Exit status 0, or that of the error that kept it from starting."""
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
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn ends in order, then hands the signal to this
        signal.signal(number, _asked_to_end)
    try:
        serve(platform_settings())
    except IPnextError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    return EXIT_OK


def serve(settings: PlatformSettings) -> None:
    """Open the rooms, migrate the store, serve, close the rooms."""
    store = Store.open(settings.database_url)
    store.migrate()
    artifacts = open_store(settings.artifacts_uri, endpoint_url=settings.s3_endpoint_url)
    lifecycle = TemporalLifecycle(ui_url=settings.temporal_ui_url, timing=settings.timing)
    with LocalProcessInfrastructure(settings.agents, timeout_seconds=OBSERVE_SECONDS) as infrastructure:
        app = create_app(store, artifacts, infrastructure, lifecycle, settings)
        config = uvicorn.Config(
            app,
            host=settings.api_host,
            port=settings.api_port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=10,
        )
        collect_rarely()
        Server(config, app.state.platform.stream).run()
    store.close()


def _asked_to_end(_number: int, _frame: object) -> None:
    """Nothing: the server has ended, and main returns."""


if __name__ == "__main__":
    end_process(main())
