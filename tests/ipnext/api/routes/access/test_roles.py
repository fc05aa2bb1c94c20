"""People at the API.

Tokens of a real identity provider, roles that are bound to names and groups, and how to log in.
"""

import asyncio
import base64
import re

import httpx
import pytest

from ipnext.access.policy import Policies
from ipnext.api.app import create_app
from ipnext.api.authorization.access import Access
from ipnext.api.authorization.authentication import is_public
from ipnext.api.authorization.persons import persons_of
from ipnext.errors import Forbidden, InvalidInput
from ipnext.model.access.rights import KEPT_SECONDS, Grant, Role
from ipnext.process.machine_details import shorten_text
from ipnext.settings import PlatformSettings, platform_settings
from tests.identity_provider import AUDIENCE, CLIENT_ID, rsa_key
from tests.ipnext.api.surface import routes


@pytest.fixture
def settings(rooms, provider):
    rooms.settings = rooms.settings.model_copy(
        update={"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, "oidc_client_id": CLIENT_ID}
    )
    return rooms.settings


@pytest.fixture
def people(settings, world):
    """The API with an identity provider."""
    return world


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


async def grant(people, subject, role="viewer", **over):
    answer = await people.http.post("/v1/roles", json={"subject": subject, "role": role, **over})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_person_without_a_role_is_forbidden_in_clear_words(people, provider):
    for path in ("/v1/models", "/v1/sessions/current", "/v1/fleet"):
        answer = await people.http.get(path, headers=bearer(provider.token()))
        assert answer.status_code == 403
        assert answer.json()["policy"] == "people-need-a-role"
        message = answer.json()["message"]
        assert shorten_text(f"user ann ({provider.issuer}#1234)") in message
        assert "groups of the token: 'search-team'" in message
        assert "ipnext roles grant" in message


@pytest.mark.parametrize("subject", ["user:ann", "group:search-team", "sub:1234"])
async def test_a_role_counts_at_once_for_name_group_or_id_and_ends_with_its_binding(people, provider, subject):
    token = bearer(provider.token())
    assert (await people.http.get("/v1/models", headers=token)).status_code == 403
    bound = await grant(people, subject)
    assert (await people.http.get("/v1/models", headers=token)).status_code == 200
    assert (await people.http.delete(f"/v1/roles/{bound['id']}")).json() == bound
    assert (await people.http.get("/v1/models", headers=token)).status_code == 403


@pytest.mark.parametrize("subject", ["user:bob", "group:ann", "sub:ann", "user:search-team", "user:Ann", "user:1234"])
async def test_a_role_of_another_subject_does_not_count(people, provider, subject):
    await grant(people, subject)
    assert (await people.http.get("/v1/models", headers=bearer(provider.token()))).status_code == 403


async def test_a_person_acts_by_the_owner_that_the_role_is_over(people, provider):
    people.rooms.seed("ranker")
    await grant(people, "group:search-team", "publisher", owner="search")
    token = bearer(provider.token())
    body = people.rooms.model_document()
    assert (await people.http.put("/v1/models/ranker", json=body, headers=token)).status_code == 200
    body["metadata"]["owner"] = "ads"
    assert (await people.http.put("/v1/models/ranker", json=body, headers=token)).status_code == 403
    assert (await people.http.post("/v1/replans", json={"replanId": "r"}, headers=token)).status_code == 403
    found = (await people.http.get("/v1/sessions/current", headers=token)).json()
    assert (found["kind"], found["name"]) == ("user", "ann")
    assert found["grants"] == [{"role": "publisher", "owner": "search", "region": "*"}]
    assert found["expiresAt"] is not None


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (lambda p: p.token(exp=1), "expired"),
        (lambda p: p.token(aud="another"), "aud"),
        (lambda p: p.token(key=rsa_key("other")), "does not publish"),
        (lambda _: "eyJhbGciOiJub25lIn0.e30.AA", "algorithm"),
        (lambda _: "no-token", "neither an API key nor a signed JWT"),
        (lambda _: "x" * 20_000, "too long"),
    ],
)
async def test_a_token_that_proves_nothing_is_401(people, provider, forge, words):
    await grant(people, "user:ann", "admin")
    answer = await people.http.get("/v1/models", headers=bearer(forge(provider)))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert words in answer.json()["message"]


async def test_a_provider_that_is_away_is_503_for_people_and_nothing_for_keys(people, provider):
    provider.away = True
    answer = await people.http.get("/v1/models", headers=bearer(provider.token()))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert (await people.http.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("role", ["viewer", "publisher", "operator"])
async def test_only_admins_manage_roles(people, provider, role):
    bound = await grant(people, "user:ann", role)
    token = bearer(provider.token())
    asked = [
        people.http.get("/v1/roles", headers=token),
        people.http.post("/v1/roles", json={"subject": "user:ann", "role": "admin"}, headers=token),
        people.http.delete(f"/v1/roles/{bound['id']}", headers=token),
    ]
    for answer in await asyncio.gather(*asked):
        assert answer.status_code == 403
        assert "roles.manage" in answer.json()["message"]


async def test_an_admin_of_one_owner_manages_no_roles(people, provider):
    await grant(people, "user:ann", "admin", owner="search")
    body = {"subject": "user:ann", "role": "admin"}
    assert (await people.http.post("/v1/roles", json=body, headers=bearer(provider.token()))).status_code == 403


async def test_a_person_who_is_admin_manages_roles_and_is_named_by_them(people, provider):
    await grant(people, "user:ann", "admin")
    body = {"subject": "group:ops (night)", "role": "operator", "region": "eu"}
    made = (await people.http.post("/v1/roles", json=body, headers=bearer(provider.token()))).json()
    assert made["createdBy"] == "user ann"
    listed = (await people.http.get("/v1/roles")).json()["items"]
    assert [item["subject"] for item in listed] == ["group:ops (night)", "user:ann"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"subject": "ann", "role": "viewer"}, "subject"),
        ({"subject": "group:", "role": "viewer"}, "subject"),
        ({"subject": "user: ann", "role": "viewer"}, "subject"),
        ({"subject": "user:a\nb", "role": "viewer"}, "subject"),
        ({"subject": "key:ann", "role": "viewer"}, "subject"),
        ({"subject": "user:" + "x" * 300, "role": "viewer"}, "subject"),
        ({"subject": "user:ann", "role": "root"}, "role"),
        ({"subject": "user:ann", "role": "viewer", "owner": "Search"}, "owner"),
        ({"subject": "user:ann", "role": "viewer", "owner": "search", "region": "eu"}, "region"),
        ({"subject": "user:ann", "role": "admin", "region": "eu"}, "role"),
    ],
)
async def test_a_binding_that_means_nothing_is_refused_with_its_field(people, body, field):
    answer = await people.http.post("/v1/roles", json=body)
    assert answer.status_code == 400
    assert field in answer.json()["field"]
    assert (await people.http.get("/v1/roles")).json()["items"] == []


async def test_a_changed_binding_is_in_force_for_another_process_within_the_memory_of_one(people, provider):
    """Another API process is told nothing, and remembers a credential for KEPT_SECONDS."""
    assert KEPT_SECONDS <= 5
    now = [0.0]
    rooms, persons = people.rooms, persons_of(people.rooms.settings, people.rooms.store)
    access = Access(rooms.store, Policies(), tokens=persons.prove, clock=lambda: now[0])
    token = provider.token()
    bound = await grant(people, "user:ann")
    assert access.prove(token).grants == (Grant(role=Role.VIEWER),)
    await people.http.delete(f"/v1/roles/{bound['id']}")
    assert access.recall(token, ("key",)) is not None
    now[0] += KEPT_SECONDS
    assert access.recall(token, ("key",)) is None
    with pytest.raises(Forbidden):
        access.prove(token)


@pytest.mark.parametrize("left", [None, "viewer"])
async def test_a_person_whose_role_ends_during_a_request_changes_nothing(people, provider, monkeypatch, left):
    bound = await grant(people, "user:ann", "operator")

    def change():
        with people.rooms.store.begin() as unit:
            binding = unit.unbind_role(bound["id"])
            if left is not None:
                weaker = binding.grant.model_copy(update={"role": Role(left)})
                unit.bind_role(binding.model_copy(update={"grant": weaker}))

    async def interrupt(*_):
        await asyncio.get_running_loop().run_in_executor(None, change)

    monkeypatch.setattr("ipnext.api.requests.guarded_route._prove_late", interrupt)
    answer = await people.http.post("/v1/replans", json={"replanId": "r"}, headers=bearer(provider.token()))
    policy = "people-need-a-role" if left is None else "operators-change-the-fleet"
    assert (answer.status_code, answer.json()["policy"]) == (403, policy)
    with people.rooms.store.read() as unit:
        assert unit.replan_page(after=None, limit=1).items == ()


async def test_a_stream_of_a_person_ends_with_the_binding_and_with_the_token(people, provider):
    persons = persons_of(people.rooms.settings, people.rooms.store)
    access = Access(people.rooms.store, Policies(), tokens=persons.prove, prove_user=persons.prove_again)
    bound = await grant(people, "user:ann")
    principal = persons.prove(provider.token())
    assert access.is_still_valid(principal)
    await grant(people, "user:ann", "operator")
    assert not access.is_still_valid(principal)
    changed = persons.prove(provider.token())
    assert access.is_still_valid(changed)
    await people.http.delete(f"/v1/roles/{bound['id']}")
    assert not access.is_still_valid(changed)


async def test_a_stream_of_a_person_ends_with_the_token(people, provider):
    persons = persons_of(people.rooms.settings, people.rooms.store)
    access = Access(people.rooms.store, Policies(), tokens=persons.prove, prove_user=persons.prove_again)
    await grant(people, "user:ann")
    principal = persons.prove(provider.token())
    persons._verifier._clock = lambda: principal.expires_at.timestamp() - 1
    assert access.is_still_valid(principal)
    persons._verifier._clock = principal.expires_at.timestamp
    assert not access.is_still_valid(principal)


async def test_an_open_stream_is_cut_when_the_binding_is_revoked(people, provider, monkeypatch):
    monkeypatch.setattr("ipnext.api.requests.stream.VALID_SECONDS", 0.0)
    bound = await grant(people, "user:ann")
    access = people.http._transport.app.state.platform.access
    from ipnext.api.authorization.listener import listener_of  # noqa: PLC0415

    listener = listener_of(access, access.prove(provider.token()))
    assert listener.may_listen()
    await people.http.delete(f"/v1/roles/{bound['id']}")
    assert not listener.may_listen()


async def test_a_token_is_no_session(people, provider):
    await grant(people, "user:ann")
    answer = await people.http.post("/v1/sessions", headers=bearer(provider.token()))
    assert answer.status_code == 401
    cookie = {"Cookie": f"ipnext_session_0={provider.token()}"}
    async with httpx.AsyncClient(transport=people.http._transport, base_url="http://localhost") as http:
        assert (await http.get("/v1/models", headers=cookie)).status_code == 401


# login


async def test_how_to_log_in_is_told_to_anybody(people, provider):
    async with httpx.AsyncClient(transport=people.http._transport, base_url="http://localhost") as http:
        answer = await http.get("/v1/login")
    assert answer.json() == {
        "issuer": provider.issuer,
        "clientId": CLIENT_ID,
        "scopes": ["openid", "profile", "email", "offline_access"],
        "audience": AUDIENCE,
    }
    assert not provider.asked


async def test_without_a_provider_a_login_is_not_found_and_a_token_is_refused(world):
    answer = await world.http.get("/v1/login", headers={"Authorization": ""})
    assert (answer.status_code, "--key" in answer.json()["message"]) == (404, True)
    refused = await world.http.get("/v1/models", headers=bearer("a.b.c"))
    assert (refused.status_code, "IPNEXT_OIDC_ISSUER" in refused.json()["message"]) == (401, True)


async def test_without_a_client_a_login_is_not_found(rooms, settings):
    rooms.settings = settings.model_copy(update={"oidc_client_id": None})
    async with rooms.client() as http:
        answer = await http.get("/v1/login")
    assert (answer.status_code, "IPNEXT_OIDC_CLIENT_ID" in answer.json()["message"]) == (404, True)


def test_an_issuer_needs_an_audience(rooms, settings):
    with pytest.raises(InvalidInput, match="IPNEXT_OIDC_AUDIENCE"):
        persons_of(settings.model_copy(update={"oidc_audience": None}), rooms.store)


@pytest.mark.parametrize("issuer", ["http://id.example.com", "id.example.com", "https://id.example.com/?a=b"])
def test_an_issuer_that_can_not_be_trusted_keeps_the_api_from_starting(rooms, issuer):
    settings = rooms.settings.model_copy(update={"oidc_issuer": issuer, "oidc_audience": AUDIENCE})
    with pytest.raises(InvalidInput, match="IPNEXT_OIDC_ISSUER"):
        create_app(rooms.store, rooms.artifacts, rooms.infrastructure, rooms.lifecycle, settings)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("IPNEXT_OIDC_ISSUER", "https://id.example.com")
    monkeypatch.setenv("IPNEXT_OIDC_SCOPES", '["openid"]')
    found = platform_settings()
    assert (found.oidc_issuer, found.oidc_scopes, found.oidc_groups_claim) == (
        "https://id.example.com",
        ("openid",),
        "groups",
    )
    assert PlatformSettings.model_fields["oidc_name_claim"].default is None


async def test_no_endpoint_takes_a_token_that_proves_nothing(people, provider):
    await grant(people, "user:ann", "admin")
    good = provider.token()
    header, claims, _ = good.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    tokens = {
        "expired": provider.token(exp=1),
        "wrong audience": provider.token(aud="another"),
        "wrong issuer": provider.token(iss="https://id.example.com"),
        "forged": provider.token(key=rsa_key("first")),
        "alg none": f"{none}.{claims}.",
        "alg none, signed": f"{none}.{claims}.{good.rpartition('.')[2]}",
        "without a signature": f"{header}.{claims}.",
    }
    for method, path, _ in routes(people.http._transport.app):
        filled = re.sub(r"\{\w+\}", "1", path)
        if not is_public(path):
            for name, token in tokens.items():
                answer = await people.http.request(method, filled, json={}, headers=bearer(token))
                assert answer.status_code == 401, (name, method, path)
    assert (await people.http.get("/v1/roles", headers=bearer(good))).status_code == 200
