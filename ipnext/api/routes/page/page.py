"""The page at `/` and the readable schema at `/docs`. Both need nothing from any other host."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse
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
async def docs(request: Request) -> HTMLResponse:
    """Return the API's schema as one page to read."""
    return HTMLResponse(render_schema(request.app.openapi()), headers=_HEADERS)


def assets() -> StaticFiles:
    """Return script and style of the page."""
    return StaticFiles(directory=WEB)
