"""Credential and role are asked before a byte of a body is read.

Nobody makes the API parse what it will refuse anyway.
"""

import json

import pytest

from ipnext.api.authorization.authentication import PUBLIC
from ipnext.api.requests.guarded_route import guards_of
from ipnext.model.access.rights import Role
from tests.ipnext.api.surface import SHOWN, routes

READING = {"GET", "HEAD"}
HAVE_NO_BODY = {("POST", "/v1/tickets"), ("POST", "/v1/sessions"), ("DELETE", "/v1/sessions/current")}
"""About the asker itself: no action, and no body."""

PLACES = {
    "name": SHOWN,
    "change_id": f"{SHOWN}-b",
    "region": "eu",
    "key_id": "a" * 16,
    "binding_id": "a" * 16,
    "sha256": "0" * 64,
    "digest": "0" * 64,
    "part": "dense",
    "source": "feed",
    "number": 1,
    "owner": "search",
}


class Asked:
    """One request by ASGI: its answer, and how often the application took a piece of its body."""

    def __init__(self, method, path, *, key=None):
        self.read, self.status, self.body = 0, 0, b""
        credential = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *credential],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 80),
        }

    async def receive(self):
        self.read += 1
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(self, message):
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    async def of(self, app):
        await app(self.scope, self.receive, self.send)
        return self


def changing(app):
    return [(m, p) for m, p, _ in routes(app) if m not in READING and (m, p) not in HAVE_NO_BODY]


async def test_a_request_without_a_credential_has_no_body_read(two_owners):
    app = two_owners.app()
    for method, path in changing(app):
        asked = await Asked(method, path.format(**PLACES)).of(app)
        assert (asked.status, asked.read) == (401, 0), (method, path)


@pytest.mark.parametrize("role", [Role.CALLER, Role.VIEWER])
async def test_a_role_that_may_not_has_no_body_read(two_owners, role):
    app, key = two_owners.app(), two_owners.add_key("asker", role)
    for method, path in changing(app):
        if path in PUBLIC:  # no key counts there
            continue
        asked = await Asked(method, path.format(**PLACES), key=key).of(app)
        assert (asked.status in {403, 404}, asked.read) == (True, 0), (method, path, asked.status, asked.body)
        assert json.loads(asked.body)["code"] in {"Forbidden", "NotFound"}


async def test_a_publisher_of_other_owners_models_has_no_body_read(two_owners):
    app, key = two_owners.app(), two_owners.add_key("asker", Role.PUBLISHER, owner="ads")
    for method, path in changing(app):
        if "/v1/models/{name}/" not in path:
            continue
        asked = await Asked(method, path.format(**PLACES), key=key).of(app)
        assert (asked.status, asked.read) == (404, 0), (method, path, asked.body)


async def test_who_may_has_the_body_read(two_owners):
    asked = await Asked("PUT", "/v1/freezes/now", key=two_owners.admin_key).of(two_owners.app())
    assert (asked.status, asked.read > 0) == (400, True)


def test_every_endpoint_that_takes_a_body_has_a_guard_that_is_asked_first(rooms):
    found = []
    for route in rooms.app().routes:
        for each in getattr(route, "routes", [route]):
            context = getattr(each, "effective_route_contexts", None)
            found += list(context()) if callable(context) else [each]
    bodies = [each for each in found if getattr(each, "body_field", None) is not None]
    assert len(bodies) > 10, "the test no longer finds the endpoints"
    assert [each.path for each in bodies if len(guards_of(each.dependant)) != 1] == []
