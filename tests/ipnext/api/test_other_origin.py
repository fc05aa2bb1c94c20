"""A page of another origin tries every action while its reader is logged in to IPnext.

Nothing changes, and nothing is read.
"""

from pathlib import Path

import pytest
from sqlalchemy import MetaData, select

from ipnext.api.authorization.authentication import is_public
from tests.ipnext.api.browsers import other_page, patient
from tests.ipnext.api.surface import HIDDEN, SHOWN, seed_two_owners
from tests.waiting import until

pytestmark = pytest.mark.browser

ATTACK = Path(__file__).with_name("other_origin.js").read_text()

VALUES = {
    "name": SHOWN,
    "change_id": f"{SHOWN}-b",
    "region": "eu",
    "plan_id": "plan-1",
    "generation": "1",
    "part": "dense",
    "source": "feed",
    "number": "1",
    "owner": "search",
    "replan_id": "r",
    "sha256": "0" * 64,
    "digest": "0" * 64,
    "binding_id": "a" * 16,
}
"""Of every parameter of a path; a new one fails here until it has a value."""

BODIES = {
    "PUT /v1/models/{name}": "model",
    "POST /v1/keys": {"name": "evil", "role": "admin"},
    "POST /v1/roles": {"subject": "user:evil", "role": "admin"},
    "POST /v1/changes/{change_id}/override": {"reason": "evil"},
    "POST /v1/replans/steer": {"action": "pause"},
    "PUT /v1/models/{name}/snapshots/{part}/{number}/hold": {"reason": "evil"},
}
"""Bodies that the API takes; of other endpoints the empty one, which most of them take."""

ENDLESS = "/v1/events/stream"

USED = "last_used_at"
"""Of a key is written down by itself."""


def operations(rooms, key_id):
    """Every endpoint of the OpenAPI schema as a request."""
    for path, methods in rooms.app().openapi()["paths"].items():
        for method in methods:
            body = BODIES.get(f"{method.upper()} {path}", {})
            if body == "model":
                body = rooms.model_document(SHOWN, qps=99)
            filled = path.format(**VALUES | {"key_id": key_id})
            yield {"method": method.upper(), "path": filled, "body": body}


def everything(rooms):
    """All rows of the store, and what engine, regions and artifacts were asked for."""
    metadata = MetaData()
    with rooms.store._engine.connect() as connection:
        metadata.reflect(connection)
        rows = {
            table.name: [
                {name: value for name, value in row._mapping.items() if name != USED}
                for row in connection.execute(select(table))
            ]
            for table in metadata.sorted_tables
        }
    files = sorted(str(path) for path in (rooms.directory / "artifacts").rglob("*"))
    return rows, list(rooms.lifecycle.controls), files


@pytest.fixture
def logged_in(browser, live):
    """A browser whose user is logged in as the administrator, with IPnext's page open."""
    seed_two_owners(live.rooms)
    context = patient(browser.new_context())
    page = context.new_page()
    page.goto(f"{live.url}/#ticket={live.rooms.ticket()}", wait_until="domcontentloaded")
    page.wait_for_selector(f"[data-model={HIDDEN}]")
    yield context, page
    context.close()


def quiet(rooms):
    """What there is, once nothing of what was begun before changes it any more."""
    seen = []
    until(lambda: seen.append(everything(rooms)) or (len(seen) > 1 and seen[-1] == seen[-2]), every_seconds=1)
    return seen[-1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_changes_nothing_and_reads_nothing(logged_in, live, host):
    """On another port of the same host, where browsers send the session's cookie, and on another host."""
    context, own = logged_in
    key_id = live.rooms.admin_key.partition(".")[0].removeprefix("ipnext_")
    actions = list(operations(live.rooms, key_id))
    asked = set()
    context.on(
        "request", lambda request: asked.add((request.method, request.url.removeprefix(live.url).partition("?")[0]))
    )
    before = quiet(live.rooms)
    with other_page() as port:
        page = context.new_page()
        page.goto(f"http://{host}:{port}/")
        page.add_script_tag(content=ATTACK)
        found = page.evaluate(
            "(given) => attack(given)",
            {
                "api": live.url,
                "operations": actions,
                "open": [a["path"] for a in actions if is_public(a["path"])],
                "endless": [ENDLESS],
            },
        )
        found += followed(context, page, live.url, [a["path"] for a in actions if a["method"] == "GET"])
    assert found == []
    assert {path for _, path in asked} >= {action["path"] for action in actions}, "every action was tried"
    assert {method for method, _ in asked} >= {"GET", "POST", "PUT", "DELETE"}
    assert quiet(live.rooms) == before
    done = own.evaluate(
        "async () => (await fetch('/v1/keys', {method: 'POST', headers: {'content-type': 'application/json'}, "
        "body: JSON.stringify({name: 'mine', role: 'viewer'})})).status"
    )
    assert done == 201, "the page of IPnext may do it"
    assert everything(live.rooms) != before


FOLLOW = """
async ([url, text]) => {
  window.opened.location = url;
  window.opened.postMessage(text, "*");
  try { return window.opened.document.body.textContent.slice(0, 80); } catch { return ""; }
}
"""


def followed(context, page, api, paths):
    """What the page reads of a window that it opened.

    It leads to every address of the API, the page itself included. The window closes with its context: one that is
    closed while a navigation commits may stay, and Playwright waits for it for ever (its issue 42366).
    """
    page.add_script_tag(
        content="document.querySelector('button').onclick = () => { window.opened = open('about:blank'); };"
    )
    with context.expect_page() as opening:
        page.click("button")
    window, read = opening.value, []
    for path in ["/", *paths]:
        if path == ENDLESS:
            continue
        with window.expect_navigation(url=f"{api}{path}*", wait_until="commit"):
            text = page.evaluate(FOLLOW, [f"{api}{path}", {"type": "logout", "ticket": "x"}])
        again = page.evaluate(
            "(() => { try { return window.opened.document.body.textContent; } catch { return ''; } })()"
        )
        read += [f"window {path}: {each}" for each in (text, again) if each]
        if path != "/" and not is_public(path):
            assert "Unauthenticated" in window.content() or "Forbidden" in window.content(), path
    return read
