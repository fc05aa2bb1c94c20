"""The page at `/` and the readable schema at `/docs`. Both need nothing from any other host."""

from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from ipnext.api.routes.page.schema_page import render_schema

router = APIRouter(include_in_schema=False)

WEB = Path(__file__).parents[2] / "web"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/")
async def index() -> FileResponse:
    """Return the page."""
    return FileResponse(WEB / "index.html", headers=_HEADERS)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Return the API's schema as one page to read."""
    body = await _prepared(request, "docs", lambda: render_schema(request.app.openapi()).encode())
    return Response(body, media_type="text/html", headers=_HEADERS)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """Return the API's schema."""
    body = await _prepared(request, "openapi", lambda: bytes(JSONResponse(request.app.openapi()).body))
    return Response(body, media_type="application/json")


async def _prepared(request: Request, name: str, make: Callable[[], bytes]) -> bytes:
    """Return a document of this application, made once: anybody may request it."""
    state = request.app.state
    if not hasattr(state, "documents"):
        state.documents = {}
    documents: dict[str, bytes] = state.documents
    if name not in documents:
        documents[name] = await anyio.to_thread.run_sync(make)
    return documents[name]


def assets() -> StaticFiles:
    """Return script and style of the page."""
    return StaticFiles(directory=WEB)
