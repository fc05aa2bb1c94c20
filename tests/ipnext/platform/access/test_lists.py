"""The list of who may ask for predictions, from the store to the regions.

What is in it, and that a revocation gets there.
"""

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from structlog.testing import capture_logs

from ipnext.access.keys import draw_key, parse_key
from ipnext.errors import RegionUnreachable, StaleWrite, Unavailable
from ipnext.infra.agent.http_api import MAX_BODY_BYTES
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.login.identity_provider import ProviderClient
from ipnext.model.access.predictions import LIST_REVISIONS, AccessRevision, TokenIssuer, listed_bytes
from ipnext.model.access.rights import Grant, Role
from ipnext.model.access.roles import RoleBinding
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.platform.access.lists import CHECK_SECONDS, AccessPublisher
from ipnext.platform.access.settings import note_settings, read_access_settings
from ipnext.settings import PlatformSettings
from ipnext.store.repository import Repository
from tests.identity_provider import AUDIENCE, rsa_key


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def _closed_everywhere(rooms):
    """Both regions need keys, for this model's users."""
    put(rooms, "closed", predictions="authenticated")


@pytest.fixture
def make(rooms, clock):
    """Makes publishers that end with the test."""
    made = []

    def make(**more):
        made.append(AccessPublisher(rooms.store, rooms.infrastructure, clock=clock, **more))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


def look(publisher):
    """One look, and all that it sends."""
    for sent in publisher.look():
        sent.result()


def lists(rooms):
    return [rooms.infrastructure.access(region) for region in ("eu", "us")]


def put(rooms, name, **access):
    document = rooms.model_document(name)
    document["spec"]["access"] = access
    document["spec"]["demand"] = [{"region": region, "qps": 1} for region in ("eu", "us")]
    with rooms.store.begin() as unit:
        unit.put_model(ModelManifest.model_validate(document), expected_version=None)


def ids(access):
    return [key.id for key in access.keys]


def test_every_region_gets_models_keys_and_roles_and_no_secret(rooms, make):
    rooms.seed("ranker")
    put(rooms, "closed", predictions="authenticated", callers=["ads"])
    text = rooms.add_key("app", Role.CALLER, owner="search")
    session = rooms.add_key("s", Role.ADMIN, kind="session", parent=parse_key(rooms.admin_key).id)
    bound = RoleBinding(
        id=draw_key().id,
        subject="group:a",
        grant=Grant(role=Role.CALLER, owner="ads"),
        created_at=datetime.now(UTC),
        created_by="a test",
    )
    with rooms.store.begin() as unit:
        unit.bind_role(bound)
    look(make())
    eu, us = lists(rooms)
    assert eu == us
    assert [(one.model, one.owner, one.access.predictions, one.access.callers) for one in eu.models] == [
        ("closed", "search", "authenticated", ("ads",)),
        ("ranker", "search", "open", ()),
    ]
    assert set(ids(eu)) == {parse_key(text).id, parse_key(rooms.admin_key).id}
    assert [(role.subject, role.grant.owner) for role in eu.roles] == [("group:a", "ads")]
    written = eu.model_dump_json()
    for secret in (text, session, rooms.admin_key):
        assert parse_key(secret).secret not in written
        assert parse_key(secret).secret not in repr(eu)


def test_a_retired_model_is_listed_without_callers_that_count_for_no_quota(rooms, make):
    rooms.seed("ranker")
    limits = {"perKey": {"requestsPerSecond": 5}}
    put(rooms, "closed", predictions="authenticated", callers=["ads"], limits=limits)
    publisher = make()
    look(publisher)
    with rooms.store.begin() as unit:
        unit.update_model("closed", retired=True)
        unit.update_model("ranker", retired=True)
    look(publisher)
    for access in lists(rooms):
        found = {one.model: one.access.model_dump(exclude_defaults=True) for one in access.models}
        assert found == {"closed": {"predictions": "authenticated"}, "ranker": {}}


def test_a_revoked_or_expired_key_is_not_in_the_next_list(rooms, make):
    text, short = (
        rooms.add_key("app", Role.CALLER),
        rooms.add_key("old", Role.CALLER, expires_at=datetime(2020, 1, 1, tzinfo=UTC)),
    )
    publisher = make()
    look(publisher)
    first = rooms.infrastructure.access("eu")
    assert parse_key(text).id in ids(first)
    assert parse_key(short).id not in ids(first)
    with rooms.store.begin() as unit:
        unit.revoke_key(parse_key(text).id)
    look(publisher)
    then = rooms.infrastructure.access("eu")
    assert parse_key(text).id not in ids(then)
    assert then.revision > first.revision


@pytest.mark.parametrize("change", ["role", "model", "owner"])
def test_every_change_that_matters_makes_a_later_list(rooms, make, change):
    rooms.seed("ranker")
    publisher = make()
    look(publisher)
    before = rooms.infrastructure.access("eu")
    if change == "role":
        with rooms.store.begin() as unit:
            grant = Grant(role=Role.CALLER)
            unit.bind_role(
                RoleBinding(
                    id=draw_key().id, subject="user:ann", grant=grant, created_at=datetime.now(UTC), created_by="t"
                )
            )
    elif change == "model":
        put(rooms, "ranker", predictions="authenticated")
    else:
        document = rooms.model_document("ranker")
        document["metadata"]["owner"] = "ads"
        with rooms.store.begin() as unit:
            unit.put_model(ModelManifest.model_validate(document), expected_version=None)
    look(publisher)
    after = rooms.infrastructure.access("eu")
    assert after.revision == before.revision + 1
    assert (after.roles, after.models) != (before.roles, before.models)


def test_what_changes_nothing_makes_no_list_and_writes_nothing(rooms, make, clock):
    rooms.seed("ranker")
    publisher = make()
    look(publisher)
    before, mark = rooms.infrastructure.access("eu"), rooms.store.revision()
    with rooms.store.begin() as unit:
        unit.add_event("ranker", "Said", "nothing of access")
    look(publisher)
    clock.now += CHECK_SECONDS
    look(publisher)
    assert rooms.infrastructure.access("eu") is before
    assert rooms.store.revision() != mark
    mark = rooms.store.revision()
    look(publisher)
    assert rooms.store.revision() == mark


def test_of_two_publishers_none_undoes_what_the_other_sent(rooms, make):
    """As with an API and a worker; one that starts again has all of it from the store."""
    first, second = make(), make()
    text = rooms.add_key("app", Role.CALLER)
    look(first)
    look(second)
    assert rooms.infrastructure.access("eu").revision == 1
    with rooms.store.begin() as unit:
        unit.revoke_key(parse_key(text).id)
    look(second)
    assert ids(rooms.infrastructure.access("eu")) == [parse_key(rooms.admin_key).id]
    for publisher in (first, second, make(), first):
        look(publisher)
        assert rooms.infrastructure.access("eu").revision == 2


@pytest.fixture
def while_read(monkeypatch):
    """Calls something once, while a publisher reads the content of the lists."""

    def call(work):
        read = Repository.caller_keys

        def reading(unit):
            monkeypatch.setattr(Repository, "caller_keys", read)
            work()
            return read(unit)

        monkeypatch.setattr(Repository, "caller_keys", reading)

    return call


def test_others_write_while_a_list_is_made_and_the_next_one_has_it(rooms, make, while_read):
    """A list of a large fleet takes seconds."""
    publisher, made = make(), []
    while_read(lambda: made.append(rooms.add_key("app", Role.CALLER)))
    look(publisher)
    assert [one.revision for one in lists(rooms)] == [1, 1]
    look(publisher)
    for access in lists(rooms):
        assert parse_key(made[0]).id in ids(access)


def test_content_that_was_read_before_another_publisher_wrote_gets_no_number(rooms, make, while_read):
    text = rooms.add_key("app", Role.CALLER)
    slow, quick = make(), make()

    def revoke():
        with rooms.store.begin() as unit:
            unit.revoke_key(parse_key(text).id)
        look(quick)

    while_read(revoke)
    look(slow)
    for access in lists(rooms):
        assert access.revision == 1
        assert parse_key(text).id not in ids(access)
    assert slow._lists["eu"].digest == rooms.infrastructure.access("eu").digest


def test_publishers_of_the_same_content_write_it_once(rooms, make, while_read):
    first, second = make(), make()
    while_read(lambda: look(second))
    look(first)
    assert [one.revision for one in lists(rooms)] == [1, 1]
    mark = rooms.store.revision()
    look(make())
    assert rooms.store.revision() == mark


def test_the_store_knows_how_large_a_list_is(rooms, make):
    rooms.seed("ranker")
    limits = {"perKey": {"requestsPerSecond": 5}}
    put(rooms, "closed", predictions="authenticated", callers=["ads", "maps"], limits=limits)
    put(rooms, "retired", predictions="authenticated", callers=["ads"])
    rooms.add_key("app", Role.CALLER, owner="maps")
    rooms.add_key("short", Role.CALLER, expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    revoked = rooms.add_key("revoked", Role.CALLER)
    with rooms.store.begin() as unit:
        unit.update_model("retired", retired=True)
        unit.revoke_key(parse_key(revoked).id)
        for name in ('user:é"', "group:" + "x" * 50):
            grant = Grant(role=Role.CALLER, owner="search")
            unit.bind_role(
                RoleBinding(id=draw_key().id, subject=name, grant=grant, created_at=datetime.now(UTC), created_by="t")
            )
    look(make())
    with rooms.store.read() as unit:
        found = unit.access_bytes()
        assert unit.model_access_bytes("none") == 0
    access = rooms.infrastructure.access("eu")
    assert len(access.keys) == 3, "all keys are in this list"
    assert found.models == sum(map(listed_bytes, access.models))
    callers = [*access.keys, *access.roles]
    assert 0 <= found.callers - sum(map(listed_bytes, callers)) < 100 * len(callers)


def test_the_largest_lists_are_some_that_agents_take(rooms, make):
    """With the policies and the provider's public keys, for which there are 8 MiB."""
    [most] = [limit.le for limit in PlatformSettings.model_fields["access_list_bytes"].metadata if hasattr(limit, "le")]
    assert 2 * most + 8 * 2**20 <= MAX_BODY_BYTES


def test_a_list_that_is_slow_on_its_way_is_not_put_behind_a_later_one(rooms, make):
    slow, fast = make(), make()
    text = rooms.add_key("app", Role.CALLER)
    slow._refresh()
    old = slow._lists["eu"]
    with rooms.store.begin() as unit:
        unit.revoke_key(parse_key(text).id)
    look(fast)
    slow._send("eu", slow._sent.setdefault("eu", _sent()), old, 0)
    assert parse_key(text).id not in ids(rooms.infrastructure.access("eu"))


def _sent():
    from ipnext.platform.access.lists import _Sent  # noqa: PLC0415

    return _Sent()


def test_a_region_that_was_away_is_told_when_it_is_back(rooms, make):
    publisher = make()
    rooms.infrastructure.cut("us")
    look(publisher)
    assert rooms.infrastructure.access("us") is None
    assert rooms.infrastructure.access("eu").revision == 1, "one that is away does not hold the others up"
    rooms.infrastructure.mend("us")
    look(publisher)
    assert rooms.infrastructure.access("us").revision == 1


def test_a_region_that_lost_its_state_is_told_again(rooms, make, clock):
    publisher = make()
    look(publisher)
    rooms.infrastructure._access.clear()
    clock.now += CHECK_SECONDS - 1
    look(publisher)
    assert rooms.infrastructure.access("eu") is None
    clock.now += 2
    look(publisher)
    assert rooms.infrastructure.access("eu").revision == 1


def has_other(rooms, region, revision, **content):
    """A list of another database, in force in a region."""
    other = {"revision": revision, "digest": "other", "keys": (), **content}
    rooms.infrastructure.put_access(region, rooms.infrastructure.access(region).model_copy(update=other))


def test_a_restored_database_gets_above_the_list_of_a_region_and_of_no_other(rooms, make):
    look(make())
    has_other(rooms, "eu", 41)
    restarted = make()
    for _ in range(3):
        look(restarted)
    assert [(one.revision, len(one.keys)) for one in lists(rooms)] == [(42, 1), (1, 1)]
    text = rooms.add_key("app", Role.CALLER)
    look(restarted)
    look(make())
    assert [one.revision for one in lists(rooms)] == [43, 2]
    assert all(parse_key(text).id in ids(one) for one in lists(rooms))


def test_other_content_under_the_same_number_is_replaced(rooms, make, clock):
    publisher = make()
    look(publisher)
    rooms.infrastructure._access.pop("eu")
    has_other_of = rooms.infrastructure.access("us").model_copy(update={"digest": "other", "keys": ()})
    rooms.infrastructure.put_access("eu", has_other_of)
    clock.now += CHECK_SECONDS
    for _ in range(2):
        look(publisher)
    eu, us = lists(rooms)
    assert (eu.digest, eu.keys) == (us.digest, us.keys)
    assert (eu.revision, us.revision) == (2, 1)


class Lying:
    """An infrastructure whose agent of `eu` was taken over: it takes no list, and says that it has another one."""

    def __init__(self, real, claims):
        self.real, self.claims = real, claims

    def regions(self):
        return self.real.regions()

    def put_access(self, region, access):
        if region == "eu" and self.claims is not None:
            msg = "later"
            raise StaleWrite(msg)
        return self.real.put_access(region, access)

    def access_revision(self, region):
        if region == "eu" and self.claims is not None:
            return AccessRevision.model_construct(revision=self.claims(), digest="none of yours")
        return self.real.access_revision(region)


@pytest.mark.parametrize(
    "claims",
    [lambda: 10**40, lambda: LIST_REVISIONS - 1, lambda: 2**32, count(2**20, 2**30).__next__, lambda: 1, lambda: 0],
    ids=["huge", "largest", "far", "ever more", "same number", "none"],
)
def test_what_the_agent_of_one_region_claims_keeps_no_revocation_from_another(rooms, clock, claims):
    text = rooms.add_key("app", Role.CALLER)
    lying = Lying(rooms.infrastructure, claims)
    publisher = AccessPublisher(rooms.store, lying, clock=clock)
    try:
        for _ in range(12):
            clock.now += 2
            look(publisher)
        assert parse_key(text).id in ids(rooms.infrastructure.access("us"))
        with rooms.store.begin() as unit:
            unit.revoke_key(parse_key(text).id)
        look(publisher)
        us = rooms.infrastructure.access("us")
        assert (ids(us), us.revision) == ([parse_key(rooms.admin_key).id], 2), "at the first look"
        lying.claims = None
        for _ in range(6):
            clock.now += 2
            look(publisher)
        eu = rooms.infrastructure.access("eu")
        assert (eu.digest, eu.keys) == (us.digest, us.keys), "its successor gets the list"
        assert eu.revision < LIST_REVISIONS // 2
    finally:
        publisher.close()


def test_a_list_that_a_region_took_and_does_not_go_by_is_sent_again(rooms, clock):
    """As with a full disk there: the agent has the list, and its router does not."""
    regions = Stuck(rooms.infrastructure)
    publisher = AccessPublisher(rooms.store, regions, clock=clock)
    try:
        look(publisher)
        rooms.add_key("app", Role.CALLER)
        regions.stuck = True
        with capture_logs() as logs:
            for _ in range(3):
                look(publisher)
        assert regions.sent["eu"] == [1, 2, 2, 2]
        (said,) = [entry["error"] for entry in logs if entry["region"] == "eu"]
        assert "goes by access list 1, and was sent 2" in said
        regions.stuck = False
        look(publisher)
        look(publisher)
        assert regions.sent["eu"] == [1, 2, 2, 2, 2]
    finally:
        publisher.close()


class Stuck:
    """An infrastructure whose agents take lists that their routers do not go by while `stuck`."""

    def __init__(self, real):
        self.real, self.stuck, self.sent = real, False, {"eu": [], "us": []}

    def regions(self):
        return self.real.regions()

    def put_access(self, region, access):
        self.sent[region].append(access.revision)
        return self.real.access_revision(region) if self.stuck else self.real.put_access(region, access)

    def access_revision(self, region):
        return self.real.access_revision(region)


def test_a_claim_writes_to_the_store_at_most_once_in_each_interval(rooms, clock):
    publisher = AccessPublisher(rooms.store, Lying(rooms.infrastructure, count(100, 100).__next__), clock=clock)
    try:
        look(publisher)
        look(publisher)
        mark = rooms.store.revision()
        for _ in range(4):
            clock.now += CHECK_SECONDS / 5
            look(publisher)
        assert rooms.store.revision() == mark
    finally:
        publisher.close()


def test_a_database_that_does_not_answer_leaves_the_regions_what_they_have(rooms, make, monkeypatch):
    publisher = make()
    look(publisher)

    def away():
        msg = "down"
        raise Unavailable(msg)

    monkeypatch.setattr(rooms.store, "revision", away)
    with pytest.raises(Unavailable):
        publisher.look()
    assert rooms.infrastructure.access("eu").revision == 1


def test_policies_and_provider_of_the_apis_settings_reach_publishers_without_them(rooms, make, tmp_path):
    policies = tmp_path / "own.cedar"
    policies.write_text('@id("none") forbid (principal, action == Action::"models.predict", resource);')
    settings = rooms.settings.model_copy(
        update={"policies_file": policies, "oidc_issuer": "https://login.example.com", "oidc_audience": AUDIENCE}
    )
    note_settings(rooms.store, read_access_settings(settings)).close()
    worker = make()
    look(worker)
    found = rooms.infrastructure.access("eu")
    assert "models.predict" in found.policies
    assert found.tokens == TokenIssuer(issuer="https://login.example.com", audience=AUDIENCE)
    later = rooms.settings.model_copy(update={"access_settings_version": 1})
    assert note_settings(rooms.store, read_access_settings(later)) is None
    look(worker)
    found = rooms.infrastructure.access("eu")
    assert (found.policies, found.tokens) == ("", None)


def test_keys_of_the_provider_reach_the_regions_and_outlive_its_absence(rooms, make, provider):
    settings = rooms.settings.model_copy(update={"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE})
    note_settings(rooms.store, read_access_settings(settings)).close()
    publisher = make(provider=ProviderClient(provider.issuer))
    look(publisher)
    publisher._read_keys(publisher._provider)
    look(publisher)
    found = rooms.infrastructure.access("eu").tokens
    assert [key["kid"] for key in found.keys] == [provider.key.kid]
    assert not {"d", "p", "x5c"} & found.keys[0].keys()
    now = datetime.now(UTC).timestamp()
    assert timedelta(hours=12).total_seconds() <= found.valid_until - now <= timedelta(hours=13).total_seconds()
    provider.away = True
    publisher._read_keys(publisher._provider)
    restarted = make()
    look(restarted)
    assert rooms.infrastructure.access("eu").tokens.keys == found.keys
    provider.away = False
    provider.rotate(rsa_key("next"))
    publisher._read_keys(publisher._provider)
    look(restarted)
    assert [key["kid"] for key in rooms.infrastructure.access("eu").tokens.keys] == ["next"]


def test_a_region_that_can_not_be_reached_says_so(rooms):
    infrastructure = MemoryInfrastructure(["eu"])
    infrastructure.cut("eu")
    with pytest.raises(RegionUnreachable):
        infrastructure.access_revision("eu")
