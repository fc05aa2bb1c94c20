"""Who may do what at the API: every endpoint by every role, and what of other owners' models shows anywhere."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta

import cedarpy
import httpx
import pytest
from sqlmodel import select

from ipnext.access.actions import ACTIONS
from ipnext.access.policy import BUILT_IN, schema
from ipnext.api.authorization.authentication import PUBLIC, is_public
from ipnext.errors import InvalidInput
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.access.rights import Role
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.store.access import keys
from ipnext.store.tables.planning import PlanRow
from tests.ipnext.api.surface import HIDDEN, OWNER, SHOWN, routes
from tests.waiting import eventually

ANY_PRINCIPAL = {("GET", "/v1/sessions/current"), ("DELETE", "/v1/sessions/current"), ("POST", "/v1/tickets")}
"""Endpoints about the asker itself: no action, but a credential."""

BODIES = {
    "/v1/keys": {"name": "made", "role": "viewer"},
    "/v1/models/{name}/publish": {"parts": {}},
    "/v1/regions/{region}/drain": {},
    "/v1/replans": {},
    "/v1/roles": {"subject": "user:ann", "role": "viewer"},
    "/v1/owners/{owner}": OWNER,
    "/v1/denials/{digest}": {"reason": "poisoned"},
}


def request_of(path, model):
    filled = path.format(
        name=model,
        change_id=f"{model}-b",
        region="eu",
        plan_id="plan-1",
        key_id="a" * 16,
        binding_id="a" * 16,
        sha256="0" * 64,
        digest="0" * 64,
        generation=1,
        part="dense",
        source="feed",
        number=1,
        replan_id="r",
        owner="search",
    ).replace("{name}", "none")
    return filled if "/freezes/now" not in filled else f"{filled}?model={model}"


def expected(action, role, owner, region, model_owner):
    """Status by the table, without Cedar: 'ok', 403 or 404."""
    is_high_enough = role.rank >= action.role.rank
    over_models = region == "*"
    everything = over_models and owner == "*"
    if action.name == "models.apply" and (not over_models or owner not in {"*", model_owner} or role is Role.CALLER):
        return "ok" if over_models and is_high_enough else 403  # the endpoint looks at whose model it is
    if action.kind == "Model":
        if not over_models or owner not in {"*", model_owner} or role is Role.CALLER:
            return 404
        return "ok" if is_high_enough else 403
    if action.kind == "Owner" and action.role is Role.VIEWER:
        return "ok" if over_models and owner in {"*", model_owner} else 404
    if action.kind == "Plan":
        may = everything and is_high_enough
    elif action.role is Role.VIEWER:
        may = is_high_enough
    elif action.name == "artifacts.upload":
        may = over_models and is_high_enough
    elif action.kind == "Region":
        may = is_high_enough and owner == "*" and region in {"*", "eu"}
    else:
        may = everything and is_high_enough
    return "ok" if may else 403


SCOPES = [("*", "*"), ("search", "*"), ("ads", "*"), ("*", "eu"), ("*", "us")]


def test_every_endpoint_names_one_action_or_is_public_or_about_the_asker(rooms):
    unnamed = {(method, path) for method, path, actions in routes(rooms.app()) if len(actions) != 1}
    public = {("POST", "/v1/sessions"), ("GET", "/v1/tickets/current"), ("GET", "/v1/login"), ("GET", "/v1/proof")}
    public |= {("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/v1/webhooks/mlflow")}
    assert unnamed == ANY_PRINCIPAL | public


def test_every_action_guards_an_endpoint(rooms):
    used = {action.name for _, _, actions in routes(rooms.app()) for action in actions}
    assert used == set(ACTIONS) - {"models.predict"}, "gateways check that one"


async def test_nobody_gets_401_from_every_endpoint_that_is_not_public(two_owners):
    app = two_owners.app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as http:
        for method, path, _ in routes(app):
            answer = await http.request(method, request_of(path, SHOWN), json={})
            if is_public(path):
                assert path in PUBLIC
                continue
            assert (answer.status_code, answer.json()["code"]) == (401, "Unauthenticated"), (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/nowhere", "/v1/models/x/y/z", "/v1"):
            assert (await http.get(path)).status_code == 401, path


@pytest.mark.parametrize(("owner", "region"), SCOPES)
@pytest.mark.parametrize("role", list(Role))
async def test_each_role_gets_what_the_table_says(two_owners, role, owner, region):
    app = two_owners.app()
    key = two_owners.add_key("asker", role, owner=owner, region=region)
    headers = {"Authorization": f"Bearer {key}"}
    async with two_owners.client() as admin:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
            for method, path, actions in routes(app):
                if not actions or path.endswith("/stream"):
                    continue
                (action,) = actions
                told = expected(action, role, owner, region, "search")
                about_a_model = "{name}" in path or "{change_id}" in path or path.endswith("/freezes/now")
                if path == "/v1/owners":
                    told = 403 if role is Role.CALLER else "ok"
                if action.kind == "Model" and (not about_a_model or path.startswith("/v1/freezes/")):
                    told = 403 if role is Role.CALLER else "ok"
                if (
                    path.startswith("/v1/freezes/now")
                    and role is not Role.CALLER
                    and (region != "*" or owner not in {"*", "search"})
                ):
                    told = 404
                answer = await http.request(method, request_of(path, SHOWN), json=BODIES.get(path, {}))
                where = (method, path, role, owner, region, answer.status_code, answer.text[:300])
                if told == "ok":
                    assert answer.status_code not in {401, 403}, where
                else:
                    assert answer.status_code == told, where
                if told == 403:
                    assert answer.json()["policy"], where
                    assert action.name in answer.json()["message"], where
                if told == 404:
                    assert "known" in answer.json()["message"] or "no change" in answer.json()["message"], where
        assert (await admin.get("/v1/models")).status_code == 200


LISTS = (
    "/v1/models",
    "/v1/models?search=ranker",
    "/v1/models?owner=ads",
    "/v1/models?ready=false",
    "/v1/overview",
    "/v1/changes",
    "/v1/events",
    "/v1/plans",
    "/v1/replans",
    "/v1/moves",
    "/v1/regions",
    "/v1/regions/eu/replicas",
    "/v1/drains",
    "/v1/freezes",
    "/v1/fleet",
    "/v1/owners",
    "/metrics",
)


@pytest.mark.parametrize("path", LISTS)
async def test_models_of_other_owners_show_nowhere(two_owners, path):
    key = two_owners.add_key("search-team", Role.OPERATOR, owner="search")
    async with two_owners.client() as http:
        everything = await http.get(path)
        mine = await http.get(path, headers={"Authorization": f"Bearer {key}"})
    assert everything.status_code == mine.status_code == 200
    assert HIDDEN not in mine.text
    assert '"ads"' not in mine.text
    if HIDDEN in everything.text:
        assert re.search(rf"(?<!ads-){SHOWN}", mine.text) or "owner=ads" in path


async def test_a_freeze_of_other_owners_models_is_not_there_and_one_of_both_names_mine(two_owners):
    headers = {"Authorization": f"Bearer {two_owners.add_key('search-team', Role.VIEWER, owner='search')}"}
    async with two_owners.client() as http:
        (shown,) = (await http.get("/v1/freezes", headers=headers)).json()["items"]
        assert shown["manifest"]["spec"]["scope"]["models"] == [SHOWN]
        theirs = await http.get("/v1/freezes/hold-ads", headers=headers)
        none = await http.get("/v1/freezes/hold-none", headers=headers)
        assert theirs.status_code == none.status_code == 404
        assert theirs.text.replace("hold-ads", "hold-none") == none.text
        assert HIDDEN not in (await http.get("/v1/freezes/hold-both", headers=headers)).text


async def test_the_counts_are_those_of_what_may_be_seen(two_owners):
    key = two_owners.add_key("search-team", Role.VIEWER, owner="search")
    async with two_owners.client() as http:
        mine = (await http.get("/v1/overview", headers={"Authorization": f"Bearer {key}"})).json()
        everything = (await http.get("/v1/overview")).json()
    assert (mine["model_count"], everything["model_count"]) == (1, 2)
    counts = ("replica_count", "routed_models", "requests")
    (shown, *_), (all_of_them, *_) = mine["regions"], everything["regions"]
    assert all(0 < shown[count] < all_of_them[count] for count in counts)
    assert sum(shown["phases"].values()) == shown["replica_count"] == len(shown["replicas"])


async def test_the_figures_of_regions_are_those_of_what_may_be_seen(two_owners):
    two_owners.infrastructure.count(HIDDEN, "eu", 1, requests=1000, errors=100)
    headers = {"Authorization": f"Bearer {two_owners.add_key('search-team', Role.VIEWER, owner='search')}"}
    async with two_owners.client() as http:
        (whole, *_) = (await http.get("/v1/regions")).json()["items"]
        (listed, *_) = (await http.get("/v1/regions", headers=headers)).json()["items"]
        (shown, *_) = (await http.get("/v1/overview", headers=headers)).json()["regions"]
        metrics = (await http.get("/metrics", headers=headers)).text
    assert (whole["replica_count"], whole["routed_models"]) == (8, 2)
    assert (whole["requests"] >= 1000, whole["errors"] >= 100) == (True, True)
    for region in (listed, shown):
        assert (region["replica_count"], sum(region["phases"].values()), region["routed_models"]) == (4, 4, 1)
        assert (region["requests"] < 1000, region["errors"]) == (True, 0)
    assert 'ipnext_replicas{phase="running",region="eu"} 4.0' in metrics


async def test_the_plan_before_a_plan_of_mine_is_not_named(two_owners):
    """Its id may name a model."""
    with two_owners.store.begin() as unit:
        in_force = unit.plan_in_force()
        row = unit._session.exec(select(PlanRow).where(PlanRow.id == in_force.id)).one()
        row.scope, row.based_on = SHOWN, f"apply-{HIDDEN}-2"
        unit._session.add(row)
    headers = {"Authorization": f"Bearer {two_owners.add_key('search-team', Role.VIEWER, owner='search')}"}
    async with two_owners.client() as http:
        for path in (f"/v1/plans/{in_force.id}", f"/v1/plans/{in_force.id}/summary", "/v1/plans"):
            assert HIDDEN in (await http.get(path)).text, path
            mine = await http.get(path, headers=headers)
            assert (mine.status_code, HIDDEN in mine.text) == (200, False), path


async def test_not_yours_is_answered_as_not_there(two_owners):
    key = two_owners.add_key("search-team", Role.PUBLISHER, owner="search")
    headers = {"Authorization": f"Bearer {key}"}
    async with two_owners.client() as http:
        for method, path, _ in routes(two_owners.app()):
            if not path.startswith("/v1/models/{name}") or (method, path) == ("PUT", "/v1/models/{name}"):
                continue
            theirs = await http.request(method, request_of(path, HIDDEN), json={}, headers=headers)
            none = await http.request(method, request_of(path, "none-at-all"), json={}, headers=headers)
            assert theirs.status_code == none.status_code == 404, (method, path, theirs.text, none.text)
            assert theirs.text.replace(HIDDEN, "X") == none.text.replace("none-at-all", "X"), path
            assert set(theirs.headers) == set(none.headers)
        theirs = await http.get(f"/v1/changes/{HIDDEN}-b", headers=headers)
        none = await http.get("/v1/changes/none-b", headers=headers)
        assert theirs.status_code == none.status_code == 404
        assert theirs.text.replace(HIDDEN, "none") == none.text


async def test_a_manifest_is_applied_by_who_may_change_its_owners_models(two_owners):
    key = two_owners.add_key("search-team", Role.PUBLISHER, owner="search")
    headers = {"Authorization": f"Bearer {key}"}
    new = two_owners.model_document("new-one")
    given_away = two_owners.model_document(SHOWN)
    given_away["metadata"]["owner"] = "ads"
    taken = two_owners.model_document(HIDDEN)
    async with two_owners.client() as http:
        assert (await http.put("/v1/models/new-one", json=new, headers=headers)).status_code == 200
        foreign = two_owners.model_document("other-one") | {"metadata": {"name": "other-one", "owner": "ads"}}
        refused = await http.put("/v1/models/other-one", json=foreign, headers=headers)
        assert (refused.status_code, refused.json()["policy"]) == (403, "publishers-change-models-of-their-owners")
        assert (await http.put(f"/v1/models/{SHOWN}", json=given_away, headers=headers)).status_code == 403
        assert (await http.put(f"/v1/models/{HIDDEN}", json=taken, headers=headers)).status_code == 404
        assert (await http.get("/v1/models/other-one")).status_code == 404
        assert (await http.get(f"/v1/models/{HIDDEN}")).json()["manifest"]["metadata"]["owner"] == "ads"


def credentials(rooms):
    """Credentials that prove nobody."""
    now = datetime.now(UTC)
    good = rooms.add_key("good", Role.ADMIN)
    gone = rooms.add_key("gone", Role.ADMIN, revoked_at=now)
    old = rooms.add_key("old", Role.ADMIN, expires_at=now - timedelta(seconds=1))
    session = rooms.add_key("s", Role.ADMIN, kind="session", parent=good.split("_")[1].split(".")[0])
    name, _, secret = good.partition(".")
    return {
        "revoked": f"Bearer {gone}",
        "expired": f"Bearer {old}",
        "another secret": f"Bearer {name}.{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}",
        "no secret": f"Bearer {name}.",
        "an id that is not there": f"Bearer ipnext_{'a' * 16}.{secret}",
        "a session in the header": f"Bearer {session}",
        "a ticket": f"Bearer {rooms.ticket()}",
        "basic": "Basic YTpi",
        "no scheme": good,
        "an empty one": "Bearer ",
        "two": f"Bearer {good} {good}",
        "a long one": f"Bearer {good}{'A' * 9000}",
        "another case": f"Bearer {good.upper()}",
        "not ASCII": "Bearer ipnext_é",
        "alg none": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
    }


async def test_credentials_that_prove_nobody_get_401_and_are_not_repeated(rooms):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=rooms.app()), base_url="http://localhost") as http:
        for name, given in credentials(rooms).items():
            answer = await http.get("/v1/models", headers={"Authorization": given.encode()})
            assert (answer.status_code, answer.json()["code"]) == (401, "Unauthenticated"), name
            assert given.partition(" ")[2][:30] not in answer.text or not given.partition(" ")[2], name


async def test_a_revoked_key_and_its_sessions_are_refused_at_once_here_and_elsewhere_within_two_seconds(rooms):
    key = rooms.add_key("leaver", Role.VIEWER)
    headers = {"Authorization": f"Bearer {key}"}
    elsewhere = rooms.app()
    time = [0.0]
    elsewhere.state.platform.access._clock = lambda: time[0]
    other = httpx.AsyncClient(transport=httpx.ASGITransport(app=elsewhere), base_url="http://localhost")
    async with rooms.client() as http, other:
        login = await http.post("/v1/sessions", headers=headers)
        assert login.status_code == 201
        cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in login.cookies.items())}
        http.cookies.clear()
        assert (await other.get("/v1/models", headers=headers)).status_code == 200
        assert (await other.get("/v1/models", headers=cookies)).status_code == 200
        identity = key.split("_")[1].split(".")[0]
        assert (await http.delete(f"/v1/keys/{identity}")).json()["revokedAt"]
        assert (await http.get("/v1/models", headers=headers)).status_code == 401
        time[0] = 2.0
        assert (await other.get("/v1/models", headers=headers)).status_code == 401
        assert (await other.get("/v1/models", headers=cookies)).status_code == 401


async def test_a_key_is_created_used_listed_without_its_secret_and_its_use_is_noted(rooms):
    async with rooms.client() as http:
        made = (await http.post("/v1/keys", json={"name": "ci", "role": "publisher", "owner": "search"})).json()
        assert re.fullmatch(r"ipnext_[a-z2-7]{16}\.[A-Za-z0-9_-]{43}", made["key"])
        headers = {"Authorization": f"Bearer {made['key']}"}
        me = (await http.get("/v1/sessions/current", headers=headers)).json()
        assert (me["name"], me["grants"]) == ("ci", [{"role": "publisher", "owner": "search", "region": "*"}])
        listing = await http.get("/v1/keys")
        secret = made["key"].partition(".")[2]
        assert secret not in listing.text
        http._transport.app.state.platform.access.note_uses()
        (mine,) = [key for key in (await http.get("/v1/keys")).json()["items"] if key["name"] == "ci"]
        assert mine["lastUsedAt"] is not None
        again = await http.post("/v1/keys", json={"name": "ci", "role": "viewer"})
        assert (again.status_code, again.json()["code"]) == (409, "Conflict")
    with rooms.store.read() as unit:
        stored = json.dumps([key.model_dump(mode="json") for key in unit.key_page(after=None, limit=9).items])
    assert secret not in stored


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "Ci", "role": "viewer"}, "name"),
        ({"name": "ci", "role": "king"}, "role"),
        ({"name": "ci", "role": "viewer", "owner": "a b"}, "owner"),
        ({"name": "ci", "role": "viewer", "owner": "ads", "region": "eu"}, "region"),
        ({"name": "ci", "role": "publisher", "region": "eu"}, "role"),
        ({"name": "ci", "role": "viewer", "expiresInSeconds": 0}, "expiresInSeconds"),
        ({"name": "ci", "role": "viewer", "secret": "x"}, "secret"),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused_by_field(rooms, body, field):
    async with rooms.client() as http:
        answer = await http.post("/v1/keys", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")
    assert field in answer.json()["message"]


async def test_sessions_and_tickets_of_one_key_are_bounded_and_those_of_another_are_not(rooms, monkeypatch):
    monkeypatch.setattr(keys, "MOST_LOGINS", 3)
    other = {"Authorization": f"Bearer {rooms.add_key('other', Role.VIEWER)}"}
    async with rooms.client() as http:
        paths = ("/v1/tickets", "/v1/sessions", "/v1/tickets", "/v1/sessions", "/v1/tickets")
        answers = [await http.post(path) for path in paths]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429, 429]
        assert answers[-1].json()["code"] == "RateLimited"
        assert (await http.post("/v1/tickets", headers=other)).status_code == 201


async def test_a_login_or_logout_makes_nobody_else_be_looked_up_again(rooms):
    app, other = rooms.app(), rooms.add_key("other", Role.VIEWER)
    access = app.state.platform.access
    access._clock = lambda: 0.0
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        await http.get("/v1/models", headers={"Authorization": f"Bearer {other}"})
        session = (await http.post("/v1/sessions", headers=rooms.headers)).headers["set-cookie"].partition(";")[0]
        assert (await http.get("/v1/models")).status_code == 200
        assert access.recall(other, ("key",)) is not None
        own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        assert (await http.delete("/v1/sessions/current", headers=own)).status_code == 204
        assert access.recall(other, ("key",)) is not None
        ended = await http.get("/v1/models", headers={"Cookie": session})
        assert (ended.status_code, "was revoked" in ended.json()["message"]) == (401, True)


async def test_a_ticket_logs_one_browser_in_once(rooms):
    async with rooms.client() as http:
        ticket = (await http.post("/v1/tickets")).json()["ticket"]
        headers = {"Authorization": f"Bearer {ticket}"}
        first, second = await asyncio.gather(*(http.post("/v1/sessions", headers=headers) for _ in range(2)))
    assert sorted([first.status_code, second.status_code]) == [201, 401]
    good = first if first.status_code == 201 else second
    cookie = good.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert ticket.partition(".")[2] not in cookie


async def test_a_ticket_names_its_key_without_being_used(rooms):
    key = rooms.add_key("search-team", Role.PUBLISHER, owner="search")
    async with rooms.client() as http:
        ticket = (await http.post("/v1/tickets", headers={"Authorization": f"Bearer {key}"})).json()["ticket"]
        headers = {"Authorization": f"Bearer {ticket}"}
        for _ in range(2):
            answer = await http.get("/v1/tickets/current", headers=headers)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-store"
        shown = answer.json()
        assert (shown["name"], shown["byPlatform"]) == ("search-team", False)
        assert shown["grants"] == [{"role": "publisher", "owner": "search", "region": "*"}]
        for credential in (key, ticket.replace(".", ".x"), "a.b.c"):
            refused = await http.get("/v1/tickets/current", headers={"Authorization": f"Bearer {credential}"})
            assert (refused.status_code, refused.json()["code"]) == (401, "Unauthenticated"), credential
        assert (await http.post("/v1/sessions", headers=headers)).status_code == 201
        assert (await http.get("/v1/tickets/current", headers=headers)).status_code == 401


async def test_only_ipnext_dev_makes_a_ticket_of_the_platform(rooms):
    first = {"Authorization": f"Bearer {rooms.ticket()}"}
    named = rooms.add_key("ipnext-dev", Role.ADMIN)
    async with rooms.client() as http:
        assert (await http.get("/v1/tickets/current", headers=first)).json()["byPlatform"]
        made = (await http.post("/v1/tickets", headers={"Authorization": f"Bearer {named}"})).json()["ticket"]
        other = {"Authorization": f"Bearer {made}"}
        assert not (await http.get("/v1/tickets/current", headers=other)).json()["byPlatform"]


async def test_a_session_changes_nothing_unless_its_own_page_asks(rooms):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=rooms.app()), base_url="http://localhost") as http:
        assert (await http.post("/v1/sessions", headers=rooms.headers)).status_code == 201
        assert (await http.get("/v1/models")).status_code == 200
        body = {"name": "evil", "role": "admin"}
        for headers, lacks in (
            ({}, "neither"),
            ({"Sec-Fetch-Site": "none"}, "no Origin, and Sec-Fetch-Site is 'none'"),
        ):
            refused = await http.post("/v1/keys", json=body, headers=headers)
            assert refused.status_code == 401
            assert f"this one has {lacks}" in refused.text
        foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
        assert (await http.post("/v1/keys", json=body, headers=foreign)).status_code == 403
        assert (await http.post("/v1/keys", json=body, headers={"Sec-Fetch-Site": "same-site"})).status_code in {
            401,
            403,
        }
        own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        assert (await http.post("/v1/keys", json=body, headers=own)).status_code == 201
        assert (await http.post("/v1/tickets", headers=own)).status_code == 403
        assert (await http.delete("/v1/sessions/current", headers=own)).status_code == 204
        assert (await http.get("/v1/models")).status_code == 401


async def test_a_policy_of_the_operator_that_forbids_wins_over_every_role(two_owners):
    file = two_owners.directory / "own.cedar"
    file.write_text(
        """
        @id("ads-is-locked")
        forbid (principal, action, resource is Model) when { resource.owner == "ads" };
        @id("no-drains-by-keys")
        forbid (principal is Key, action == Action::"regions.drain", resource);
        """
    )
    two_owners.settings = two_owners.settings.model_copy(update={"policies_file": file})
    async with two_owners.client() as http:
        assert (await http.get(f"/v1/models/{HIDDEN}")).status_code == 404
        assert HIDDEN not in (await http.get("/v1/overview")).text
        assert (await http.get(f"/v1/models/{SHOWN}")).status_code == 200
        refused = await http.post("/v1/regions/eu/drain", json={})
        assert (refused.status_code, refused.json()["policy"]) == (403, "no-drains-by-keys")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("permit(principal, action, resource) when", "unexpected end of input|not Cedar"),
        ('@id("a") forbid(principal, action == Action::"models.publsh", resource);', "unrecognized action"),
        ('@id("a") forbid(principal, action, resource is Model) when { principal.nmae == "x" };', "`nmae`"),
        ('@id("a") forbid(principal is Session, action, resource);', "unrecognized entity type `Session`"),
        ("permit(principal, action, resource);", "needs an @id"),
        ('@id("admins-do-everything") forbid(principal, action, resource);', "of its own"),
    ],
)
def test_policies_that_are_none_or_have_no_name_of_their_own_are_refused_at_the_start(rooms, text, said):
    file = rooms.directory / "own.cedar"
    file.write_text(text)
    rooms.settings = rooms.settings.model_copy(update={"policies_file": file})
    with pytest.raises(InvalidInput, match=said) as refused:
        rooms.app()
    assert "IPNEXT_POLICIES_FILE" in str(refused.value)


async def test_the_built_in_policies_fit_the_schema(rooms):
    assert not cedarpy.validate_policies(BUILT_IN.read_text(), schema()).errors


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_name_that_another_owner_took_meanwhile_is_not_taken_over(two_owners, monkeypatch, dry_run):
    """The owner is looked at in the unit of work that writes.

    Between the first look and that one the model was created.
    """
    document = two_owners.model_document("new-one")
    theirs = two_owners.model_document("new-one")
    theirs["metadata"]["owner"] = "ads"

    def meanwhile(_):
        with two_owners.store.begin() as unit:
            unit.put_model(ModelManifest.model_validate(theirs), expected_version=None)

    monkeypatch.setattr("ipnext.api.routes.models.models.check_storable", meanwhile)
    headers = {"Authorization": f"Bearer {two_owners.add_key('search-team', Role.PUBLISHER, owner='search')}"}
    async with two_owners.client() as http:
        answer = await http.put(f"/v1/models/new-one?dryRun={dry_run}", json=document, headers=headers)
        assert (answer.status_code, "ads" in answer.text) == (404, False)
        assert (await http.get("/v1/models/new-one")).json()["manifest"]["metadata"]["owner"] == "ads"


async def test_a_publish_past_freezes_needs_the_role_of_an_override(two_owners):
    keys = {role: two_owners.add_key(role.value, role, owner="search") for role in (Role.PUBLISHER, Role.OPERATOR)}
    async with two_owners.client() as http:
        for role, key in keys.items():
            body = {"parts": {"dense": {"digest": "0" * 64}}, "overrideFreeze": "now"}
            headers = {"Authorization": f"Bearer {key}"}
            answer = await http.post(f"/v1/models/{SHOWN}/publish", json=body, headers=headers)
            if role is Role.PUBLISHER:
                assert (answer.status_code, answer.json()["policy"]) == (403, "operators-steer-models-of-their-owners")
            else:
                assert answer.status_code not in {401, 403}, answer.text


async def test_a_session_may_not_what_its_key_may_not(two_owners):
    file = two_owners.directory / "own.cedar"
    file.write_text(
        '@id("no-drains") forbid (principal is Key, action == Action::"regions.drain", resource);\n'
        f'@id("not-this-key") forbid (principal == Key::"{two_owners.admin_key[7:23]}", '
        'action == Action::"replans.ask", resource);'
    )
    two_owners.settings = two_owners.settings.model_copy(update={"policies_file": file})
    own = {"Origin": "http://localhost"}
    async with two_owners.client() as http:
        assert (await http.post("/v1/sessions")).status_code == 201
        del http.headers["authorization"]
        for path, policy in (("/v1/regions/eu/drain", "no-drains"), ("/v1/replans", "not-this-key")):
            refused = await http.post(path, json={}, headers=own)
            assert (refused.status_code, refused.json()["policy"]) == (403, policy)


async def test_policies_that_forbid_lists_hold_and_who_still_sees_all_models_reads_the_fleets_words(two_owners):
    file = two_owners.directory / "own.cedar"
    file.write_text(
        '@id("no-lists") forbid (principal is Key, action == Action::"models.list", '
        'resource) when { principal.name == "poor" };'
    )
    two_owners.settings = two_owners.settings.model_copy(update={"policies_file": file})
    poor = {"Authorization": f"Bearer {two_owners.add_key('poor', Role.ADMIN)}"}
    async with two_owners.client() as http:
        for path in ("/v1/models", "/v1/overview", "/metrics", "/v1/events"):
            refused = await http.get(path, headers=poor)
            assert (refused.status_code, refused.json()["policy"]) == (403, "no-lists"), path
            assert (await http.get(path)).status_code == 200
        assert "hold-ads holds" in (await http.get("/v1/events")).text


async def test_what_others_plan_drain_and_change_is_named_nowhere(two_owners):
    with two_owners.store.begin() as unit:
        drain = unit.add_drain("us")
        unit.add_shortage_replan(HIDDEN, 2)
        unit.update_drain(drain.id, message=f"unserved would be {HIDDEN}: 5 requests/s", state=DrainState.REFUSED)
    headers = {"Authorization": f"Bearer {two_owners.add_key('search-team', Role.PUBLISHER, owner='search')}"}
    async with two_owners.client() as http:
        assert HIDDEN in (await http.get("/v1/regions/us/drain")).json()["summary"]
        assert HIDDEN in (await http.get("/v1/replans")).text
        assert (await http.get(f"/v1/replans/shortage-{HIDDEN}-2", headers=headers)).status_code == 404
        for path in ("/v1/regions/us/drain", "/v1/drains", "/v1/regions", "/v1/overview", "/v1/replans", "/v1/moves"):
            assert HIDDEN not in (await http.get(path, headers=headers)).text, path
        body = {"parts": {"dense": {"digest": "0" * 64}}, "changeId": f"{HIDDEN}-b"}
        for action in ("publish", "rollback"):
            given = body if action == "publish" else {"changeId": f"{HIDDEN}-b"}
            taken = await http.post(f"/v1/models/{SHOWN}/{action}", json=given, headers=headers)
            assert f"of model '{HIDDEN}'" not in taken.text
            assert f"of '{HIDDEN}'" not in taken.text
        page = (await http.get("/v1/freezes?limit=1", headers=headers)).json()
        assert ([item["manifest"]["metadata"]["name"] for item in page["items"]], page["next"]) == (["hold-both"], None)
        texts = {(await http.get(f"/v1/plans/{plan}", headers=headers)).text for plan in ("none", "nil")}
        assert {text.replace("none", "nil") for text in texts} == {
            '{"code": "NotFound", "message": "no plan has the id \'nil\'"}'
        }


async def test_a_plan_of_one_model_in_force_is_shown_to_who_may_read_the_model(two_owners):
    with two_owners.store.begin() as unit:
        in_force = unit.plan_in_force()
        assert in_force is not None
        row = unit._session.get(
            PlanRow, unit._session.exec(select(PlanRow.ordinal).where(PlanRow.id == in_force.id)).one()
        )
        row.scope = HIDDEN
        unit._session.add(row)
    async with two_owners.client() as http:
        assert (await http.get("/v1/overview")).json()["plan"]["summary"]["scope"] == HIDDEN
        for owner, shown in (("search", False), ("ads", True)):
            headers = {"Authorization": f"Bearer {two_owners.add_key(owner, Role.VIEWER, owner=owner)}"}
            assert ((await http.get("/v1/overview", headers=headers)).json()["plan"] is not None) is shown


OTHER_COOKIES = ('foo={"a":1}', "x[y]=1", "novalue", "a=b c", "path=/q", 'q="un', "@@", "=", "ipnext_session_1=x")


@pytest.mark.parametrize("other", OTHER_COOKIES)
async def test_cookies_of_other_programs_log_nobody_out(rooms, other):
    async with rooms.client() as http:
        login = await http.post("/v1/sessions")
        (mine,) = [f"{name}={value}" for name, value in login.cookies.items()]
        http.cookies.clear()
        del http.headers["authorization"]
        for cookies in (f"{other}; {mine}", f"{mine}; {other}"):
            assert (await http.get("/v1/models", headers={"Cookie": cookies})).status_code == 200, cookies


async def test_a_page_on_another_port_of_this_host_reads_nothing_with_the_sessions_cookie(rooms):
    async with rooms.client() as http:
        assert (await http.post("/v1/sessions")).status_code == 201
        del http.headers["authorization"]
        for site, status in (("same-site", 401), ("same-origin", 200), ("none", 200)):
            answer = await http.get("/v1/models", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"})
            assert answer.status_code == status, site


async def test_two_credentials_in_one_request_count_as_none(rooms):
    async with rooms.client() as http:
        headers = [("authorization", f"Bearer {rooms.admin_key}"), ("authorization", f"Bearer {rooms.admin_key}")]
        assert (await http.request("GET", "/v1/models", headers=httpx.Headers(headers))).status_code == 401


async def test_a_stream_tells_of_visible_models_only_and_ends_with_its_key(two_owners, monkeypatch):
    monkeypatch.setattr("ipnext.api.requests.stream.VALID_SECONDS", 0.0)
    key = two_owners.add_key("search-team", Role.VIEWER, owner="search")
    app = two_owners.app()
    platform = app.state.platform
    principal = platform.access.prove(key)
    from ipnext.api.authorization.listener import listener_of  # noqa: PLC0415

    told = []

    async def follow():
        messages = platform.stream.subscribe(0, listener_of(platform.access, principal))
        while message := await anext(messages, b""):
            told.append(message.decode())

    task = asyncio.create_task(follow())
    await eventually(lambda: any("generation 1 serves" in message for message in told))
    with two_owners.store.begin() as unit:
        unit.add_event(HIDDEN, "Seen", "by nobody")
        unit.add_event(None, "FreezeApplied", f"of {HIDDEN}")
        unit.add_event(SHOWN, "Seen", "by its owner")
    await eventually(lambda: any("by its owner" in message for message in told))
    with two_owners.store.begin() as unit:
        unit.revoke_key(principal.id)
    await eventually(task.done)
    assert not any(HIDDEN in message for message in told)
    await platform.stream.close()


async def test_changes_of_hidden_models_wake_no_viewer(two_owners, monkeypatch):
    """`changed` for each of them would tell when other owners are at work."""
    key = two_owners.add_key("search-team", Role.VIEWER, owner="search")
    app = two_owners.app()
    platform = app.state.platform
    from ipnext.api.authorization.listener import listener_of  # noqa: PLC0415

    marks, told = [], []
    show = platform.stream._shown

    async def show_noted(visible, holder):
        mark = await show(visible, holder)
        marks.append(mark)
        return mark

    monkeypatch.setattr(MemoryInfrastructure, "_count_traffic", lambda *_: None)  # which is a change of its own
    monkeypatch.setattr(platform.stream, "_shown", show_noted)
    monkeypatch.setattr(platform.stream, "_look_seconds", 0.01)

    async def follow():
        async for message in platform.stream.subscribe(None, listener_of(platform.access, platform.access.prove(key))):
            told.append(message.decode().partition("\n")[0])  # noqa: PERF401 - as they come

    def write(model, text):
        with two_owners.store.begin() as unit:
            unit.set_condition(model, ConditionType.SERVING, "False", Reason.NO_CAPACITY, text)

    task = asyncio.create_task(follow())
    await eventually(lambda: told == ["event: changed"])
    seen = len(marks)
    write(HIDDEN, "hidden")
    await eventually(lambda: len(marks) > seen)
    assert told == ["event: changed"]
    write(SHOWN, "shown")
    await eventually(lambda: told == ["event: changed"] * 2)
    await platform.stream.close()
    await asyncio.gather(task, return_exceptions=True)
