"""Runs one ASGI application on a loopback port until SIGTERM or SIGINT. Used by host and router."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import structlog
import uvicorn
import uvloop

from serving.asgi import Application

KEEP_ALIVE_SECONDS: Final = 7200
"""Longer than any client of ours keeps an idle connection, so that it is never the server that closes a reused one."""
_SHUTDOWN_SECONDS: Final = 2
"""How long requests under way may take to finish once the server closes."""


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which ends the process by the signal in place of status 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


async def serve(
    application: Application, listener: socket.socket, *, before_exit: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Serve until a signal comes, await `before_exit` (still answering), then finish what runs, close and return."""
    config = uvicorn.Config(
        application,
        http="httptools",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    server = _Server(config)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done() and before_exit is not None:
        await before_exit()
    asked.cancel()
    server.should_exit = True
    await running


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a process's main coroutine on uvloop."""

    async def start() -> None:
        await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(start())


def log_as_json() -> None:
    """Log as JSON lines to standard error, at INFO."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
