"""The page in a real browser, on models with a past."""

import pytest

from ipnext.model.lifecycle.status import Reason
from tests.ipnext.api.browsers import patient


@pytest.fixture
def seeded(live):
    """Two models: one that serves its second generation and had its third refused, one without a snapshot."""
    rooms = live.rooms
    rooms.seed("ranker", "embedder")
    for salt, number in (("a", 1), ("b", 2)):
        rooms.publish_directly("ranker", salt)
        rooms.serve(number)
    rooms.publish_directly("ranker", "c")
    rooms.refuse(3, Reason.SCHEMA_MISMATCH, "edge sparse.output -> dense.x: FP16 is not FP32")
    rooms.adopt_plan()
    return live


@pytest.fixture
def page(browser, seeded):
    context = patient(browser.new_context(viewport={"width": 1360, "height": 1500}))
    page = context.new_page()
    complaints = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    aborted = "net::ERR_ABORTED"  # the page was left while it polled
    page.on("requestfailed", lambda r: complaints.append(r.url) if r.failure != aborted else None)
    page.goto(f"{seeded.url}/#ticket={seeded.rooms.ticket()}", wait_until="domcontentloaded")
    page.wait_for_selector("[data-model=ranker]")
    yield page
    assert complaints == []
    context.close()
