"""Runs one handler on its listeners until SIGTERM or SIGINT. Used by host and router."""

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
import uvloop

from ipnext.network.allowed_hosts import AllowedHosts
from serving.http.connection import Upgrade, http_factory
from serving.http.dialects import DialectOf, always_v2
from serving.http.limits import BodyBudget, OpenConnections
from serving.http.listeners import Listener
from serving.http.messages import Handler

_SHUTDOWN_SECONDS: Final = 2
"""How long requests in flight may take to finish once the server closes."""


def add_allowed_hosts(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `allowed_hosts`."""
    more = "name that requests may give as Host, beside loopback addresses and localhost; may be repeated"
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=more)
    pages = "origin whose pages may ask: https://ui.example.com; may be repeated"
    parser.add_argument("--allowed-origin", action="append", default=[], metavar="ORIGIN", help=pages)


def allowed_hosts(arguments: argparse.Namespace) -> AllowedHosts:
    """Return the names and origins of the command line. InvalidInput."""
    return AllowedHosts(tuple(arguments.allowed_host), tuple(arguments.allowed_origin))


async def serve(  # noqa: PLR0913 - what a process gives to its listeners
    handler: Handler,
    listeners: Sequence[Listener],
    *,
    upgrades: Mapping[str, Upgrade] | None = None,
    allowed: AllowedHosts | None = None,
    connections: OpenConnections | None = None,
    before_exit: Callable[[], Awaitable[None]] | None = None,
    dialect_of: DialectOf = always_v2,
) -> None:
    """Serve until a signal, await `before_exit` (still answering), then finish running requests, close and return.

    From the signal on, each answer is the last one of its connection. A second signal ends at once: it cancels
    `before_exit` and abandons running requests.
    """
    loop = asyncio.get_running_loop()
    asked, insisted = asyncio.Event(), asyncio.Event()

    def handle_signal() -> None:
        (insisted if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle_signal)
    opened = OpenConnections(BodyBudget()) if connections is None else connections
    servers = []
    for listener in listeners:
        factory, _ = http_factory(
            handler, upgrades, allowed=allowed, connections=opened, guard=listener.guard, dialect_of=dialect_of
        )
        make = loop.create_server if listener.guard is None else loop.create_unix_server
        servers.append(await make(factory, sock=listener.socket, backlog=2048))
    await asked.wait()
    opened.closing = True
    if before_exit is not None:
        await _unless(insisted, before_exit())
    for server in servers:
        server.close()
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    while not (insisted.is_set() or all(c.idle for c in opened)) and time.monotonic() < deadline:  # noqa: ASYNC110  # polled once, at the end
        await asyncio.sleep(0.01)
    for connection in tuple(opened):
        connection.close()


async def _unless(insisted: asyncio.Event, ending: Awaitable[None]) -> None:
    """Await `ending`; cancel it once `insisted` is set."""
    steps = asyncio.ensure_future(ending)
    hurry = asyncio.ensure_future(insisted.wait())
    await asyncio.wait((steps, hurry), return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if steps.done():
        steps.result()
    else:
        steps.cancel()


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
