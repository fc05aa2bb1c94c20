"""The server of a node, which the API server asks for logs."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.kubernetes.server.certificates import authority, server_context

FindLog = Callable[[str, str, str, bool], Path | None]
"""Finds the log of a container, by namespace, pod, container and whether it is that of the run before."""


@contextlib.asynccontextmanager
async def serving_logs(find: FindLog, directory: Path) -> AsyncIterator[int]:
    """Serve logs over TLS; yields the port."""

    async def answer(request: Request) -> PlainTextResponse:
        query, place = request.query_params, request.path_params
        log = find(place["namespace"], place["name"], place["container"], query.get("previous") == "true")
        if log is None or not log.exists():
            message = f'container "{place["container"]}" in pod "{place["name"]}" is waiting to start'
            return PlainTextResponse(message, 400)
        lines = log.read_text(errors="replace").splitlines(keepends=True)
        tail = query.get("tailLines")
        return PlainTextResponse("".join(lines[max(0, len(lines) - int(tail)) :] if tail else lines))

    app = Starlette(routes=[Route("/containerLogs/{namespace}/{name}/{container}", answer)])
    context = server_context(*authority().write_server(directory))
    config = uvicorn.Config(app, log_level="error", ws="none", lifespan="off", ssl_context_factory=lambda *_: context)
    server, listener = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.shield(serving)
