"""Chromium for tests of the page, and a page of another origin."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.waiting import PATIENCE_SECONDS

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def patient(context):
    """Waits for what comes in the page as long as other tests do."""
    context.set_default_timeout(1000 * PATIENCE_SECONDS)
    return context


@contextmanager
def chromium(*arguments):
    """A browser, headless, with further arguments; skips the test if there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser on the PATH (looked for {', '.join(BROWSERS)}); install chromium to run this test")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        yield browser
        browser.close()


class _EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><button>press me</button>")

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def other_page() -> Iterator[int]:
    """The port of a server with one page that has a button."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage)
    thread = threading.Thread(target=server.serve_forever, name="elsewhere")
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(PATIENCE_SECONDS)
    server.server_close()
