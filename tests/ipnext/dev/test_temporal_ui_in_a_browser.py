"""The real UI of Temporal's development server in Chromium, behind the real proxy."""

import re
import subprocess
import sys
from contextlib import contextmanager, suppress

import httpx
import pytest

from ipnext.dev.hidden_address import HiddenAddress
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.infra.process.ports import free_port
from tests.ipnext.api.browsers import chromium, patient
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.browser

EVIL = "evil.test"
"""A name that a page's owner has made to resolve to this machine."""
WORKFLOW = "lifecycle/ranker/c-1"


@contextmanager
def running(command, log):
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.fixture
def temporal(tmp_path, platforms):
    """Temporal's development server with its UI at an address of its own; its gRPC address and the UI's URL."""
    port, hidden = free_port(), HiddenAddress.draw()
    server = read_devfile().temporal.model_copy(update={"port": port})
    command = server_command(server, binary=temporal_binary(), state=None, ui=hidden)
    with running(command, tmp_path / "temporal.log"):
        yield f"127.0.0.1:{port}", hidden.url


@pytest.fixture
def ui(live, temporal, tmp_path):
    """URL of the proxy, once the UI answers through it."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "ipnext.dev.temporal_ui", "--port", url.rpartition(":")[2]]
    log = tmp_path / "proxy.log"
    with running([*command, "--upstream", temporal[1], "--api", live.url], log) as process:

        def answers():
            assert process.poll() is None, log.read_text()
            with suppress(httpx.TransportError):
                return httpx.get(f"{url}/api/v1/namespaces", headers=live.rooms.headers, trust_env=False).is_success

        until(answers, why=lambda: (tmp_path / "temporal.log").read_text()[-2000:])
        yield url


@pytest.fixture
def browser(ui, live):
    """A page of an administrator who is logged in, in a browser for which EVIL is this machine."""
    with chromium(f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as found:
        context = patient(found.new_context())
        page = context.new_page()
        page.goto(f"{live.url}/#ticket={live.rooms.ticket()}", wait_until="domcontentloaded")
        page.wait_for_function("location.hash === ''")
        page.wait_for_selector("#temporal")
        yield page
        context.close()


def start(address):
    """Start a run that nothing carries on."""
    command = [str(temporal_binary()), "workflow", "start", "--address", address, "--type", "lifecycle"]
    command += ["--task-queue", "nothing", "--workflow-id", WORKFLOW]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS)


def test_an_administrator_sees_the_runs_and_opens_one(browser, ui, temporal, tmp_path):
    start(temporal[0])
    browser.goto(f"{ui}/")
    browser.get_by_text(WORKFLOW).first.wait_for()
    browser.screenshot(path=tmp_path / "workflows.png")
    browser.get_by_text(WORKFLOW).first.click()
    browser.wait_for_url(re.compile(r"/workflows/lifecycle%2Franker%2Fc-1/"))
    browser.get_by_role("button", name="Request Cancellation").first.wait_for()  # those of a narrow window are hidden
    browser.screenshot(path=tmp_path / "workflow.png")


def test_a_page_under_a_name_that_leads_here_gets_nothing(browser, ui):
    """Neither as a document nor by a script of the page, which is then of the same origin."""
    evil = ui.replace("127.0.0.1", EVIL)
    answer = browser.goto(f"{evil}/")
    assert answer.status == 421
    assert "MisdirectedRequest" in browser.content()
    for method in ("GET", "POST"):
        found = browser.evaluate(
            "async ([url, method]) => { const a = await fetch(url, {method}); return [a.status, await a.text()]; }",
            [f"{evil}/api/v1/namespaces", method],
        )
        assert found[0] == 421
        assert "namespaceInfo" not in found[1]


def test_a_browser_that_is_not_logged_in_is_led_to_the_login(ui, live):
    with chromium() as found:
        context = patient(found.new_context())
        page = context.new_page()
        assert page.goto(f"{ui}/namespaces/default/workflows").status == 401
        assert page.locator("a").first.get_attribute("href") == f"{live.url}/"
        context.close()
