"""A remote codec for Temporal's UI and CLI: shows encrypted payloads to operators who have the keys.

`python -m ipnext.codec_server --port 8081 --ui-origin https://temporal.example.com` serves on 127.0.0.1, beside the
operator's browser, with the keys of `IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE`. Pages of other origins get no answer.
"""

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from ipnext.components.private_files import keep_new_files_private
from ipnext.errors import EXIT_OK, InvalidInput, IPnextError
from ipnext.infra.error_body import error_body
from ipnext.infra.process.ports import LOOPBACK
from ipnext.network.allowed_hosts import AllowedHosts, joined_headers
from ipnext.payload_keys import FIELD, PayloadKeysFile
from ipnext.payloads import EncryptionCodec, decode_json, encode_json
from ipnext.temporal_access import temporal_settings

HIGHEST_PORT: Final = 65535
MAX_BODY_BYTES: Final = 8 * 2**20
"""A body is decoded in the event loop, so that a large one would hold all other requests."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def codec_app(codec: EncryptionCodec, allowed: AllowedHosts) -> web.Application:
    """Make the application. Pages of the origins of `allowed` may call it, and programs of this machine."""

    async def encode(request: web.Request) -> web.Response:
        return web.Response(body=await encode_json(codec, await request.read()), content_type="application/json")

    async def decode(request: web.Request) -> web.Response:
        return web.Response(body=await decode_json(codec, await request.read()), content_type="application/json")

    app = web.Application(middlewares=[_checked(allowed)], client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(_readable_for(allowed))
    app.router.add_post("/encode", encode)
    app.router.add_post("/decode", decode)
    return app


def _checked(allowed: AllowedHosts) -> Middleware:
    """Refuse other hosts and pages of other origins."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = joined_headers(request.headers.items())
        try:
            allowed.check_host(request.headers.get("host", ""))
            allowed.check_source(request.method, request.headers.get("host", ""), headers)
            answer = web.Response() if request.method == "OPTIONS" else await handler(request)
        except IPnextError as error:
            body = error_body(error)
            answer = web.Response(body=body, status=error.http_status, content_type="application/json")
        return answer

    return check


def _readable_for(allowed: AllowedHosts) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Return the step that lets pages of the allowed origins read every answer, also aiohttp's (404, 405, 413)."""
    origins = {one.lower() for one in allowed.origins}

    async def show(request: web.Request, answer: web.StreamResponse) -> None:
        if (origin := joined_headers(request.headers.items()).get("origin", "")).lower() in origins:
            answer.headers["access-control-allow-origin"] = origin
            answer.headers["access-control-allow-methods"] = "POST, OPTIONS"
            answer.headers["access-control-allow-headers"] = "authorization, content-type, x-namespace"
            answer.headers["access-control-allow-private-network"] = "true"  # browsers ask before they call 127.0.0.1

    return show


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ends with status 2 and a usage text on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m ipnext.codec_server", description="A remote codec for Temporal's UI and CLI, on 127.0.0.1."
    )
    parser.add_argument("--port", required=True, type=_port, help="port on 127.0.0.1, from 1 to 65535")
    parser.add_argument(
        "--ui-origin", action="append", default=[], metavar="ORIGIN", help="origin of Temporal's UI; may be repeated"
    )
    return parser.parse_args(arguments)


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number <= HIGHEST_PORT:
        raise ValueError
    return number


def load_codec() -> EncryptionCodec:
    """Return the codec of this process's settings. InvalidInput without keys."""
    file = temporal_settings().temporal_payload_keys_file
    if file is None:
        msg = f"{FIELD} (IPNEXT_{FIELD.upper()}): is not set; allowed: a file of keys"
        raise InvalidInput(msg, field=FIELD)
    return EncryptionCodec(PayloadKeysFile(file).current)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit status 0, or that of the error that prevented the start."""
    keep_new_files_private()
    given = read_arguments(arguments)
    try:
        app = codec_app(load_codec(), AllowedHosts(origins=tuple(given.ui_origin)))
    except IPnextError as error:
        structlog.get_logger().error("codec server ends", code=error.code, reason=error.message)
        return error.exit_status
    try:
        web.run_app(app, host=LOOPBACK, port=given.port, access_log=None, print=lambda _: None)
    except OSError as error:
        structlog.get_logger().error("codec server ends", reason=str(error))
        return 1
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
