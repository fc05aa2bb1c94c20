"""Regions get the keys and roles that may ask a model which needs a credential, and learn of no other ones."""

from datetime import UTC, datetime

import pytest

from ipnext.access.keys import draw_key, parse_key
from ipnext.access.policy import permits_more
from ipnext.model.access.rights import Grant, Role
from ipnext.model.access.roles import RoleBinding
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.platform.access.lists import AccessPublisher
from ipnext.platform.access.settings import note_settings, read_access_settings
from tests.identity_provider import AUDIENCE

FORBID = '@id("none") forbid (principal, action == Action::"models.predict", resource);'
PERMIT = '@id("bot") permit (principal, action == Action::"models.predict", resource) when { principal.name == "bot" };'


class World:
    """Keys and roles of several owners, and what each region gets of them."""

    def __init__(self, rooms):
        self.rooms = rooms
        self.publisher = AccessPublisher(rooms.store, rooms.infrastructure)
        self.names = {parse_key(rooms.admin_key).id: "admin"}
        for name, role, scope in (
            ("search", Role.CALLER, {"owner": "search"}),
            ("ads", Role.PUBLISHER, {"owner": "ads"}),
            ("maps", Role.VIEWER, {"owner": "maps"}),
            ("all", Role.CALLER, {}),
            ("of-region", Role.OPERATOR, {"region": "us"}),
        ):
            self.names[parse_key(rooms.add_key(name, role, **scope)).id] = name
            self.bind(name, Grant(role=role, **scope))

    def bind(self, name, grant):
        bound = RoleBinding(
            id=draw_key().id, subject=f"group:{name}", grant=grant, created_at=datetime.now(UTC), created_by="a test"
        )
        with self.rooms.store.begin() as unit:
            unit.bind_role(bound)

    def put(self, name="secret", *, owner="search", users=("eu",), **access):
        document = self.rooms.model_document(name)
        document["metadata"]["owner"] = owner
        document["spec"]["access"] = {"predictions": "authenticated"} | access
        document["spec"]["demand"] = [{"region": region, "qps": 1} for region in users]
        with self.rooms.store.begin() as unit:
            unit.put_model(ModelManifest.model_validate(document), expected_version=None)

    def settings(self, tmp_path, version, policies):
        file = tmp_path / "own.cedar"
        file.write_text(policies)
        update = {"policies_file": file, "oidc_issuer": "https://login.example.com", "oidc_audience": AUDIENCE}
        settings = self.rooms.settings.model_copy(update=update | {"access_settings_version": version})
        note_settings(self.rooms.store, read_access_settings(settings)).close()

    def look(self):
        for sent in self.publisher.look():
            sent.result()

    def keys(self, region):
        self.look()
        return {self.names[key.id] for key in self.rooms.infrastructure.access(region).keys}

    def roles(self, region):
        self.look()
        return {role.subject.partition(":")[2] for role in self.rooms.infrastructure.access(region).roles}


@pytest.fixture
def world(rooms):
    found = World(rooms)
    yield found
    found.publisher.close()


def test_a_region_whose_models_are_all_open_gets_no_key_and_no_role(world):
    world.put(predictions="open")
    assert (world.keys("eu"), world.roles("eu")) == (set(), set())
    assert [one.model for one in world.rooms.infrastructure.access("eu").models] == ["secret"]


def test_keys_of_owners_with_open_models_alone_go_nowhere(world):
    world.put(users=["eu"])
    world.put("other", owner="ads", users=["us"], predictions="open")
    for region in ("eu", "us"):
        assert world.keys(region) == {"admin", "all", "search"}, "a move may bring the model to any region"
        assert world.roles(region) == {"all", "search"}
    world.put("other", owner="ads", users=["us"])
    assert world.keys("eu") == {"admin", "all", "search", "ads"}


def test_owners_that_a_model_is_shared_with_are_among_them(world):
    world.put(callers=["maps"])
    assert world.keys("eu") == {"admin", "all", "search", "maps"}
    world.put(callers=["*"])
    assert world.keys("eu") == {"admin", "all", "search", "maps", "ads"}


def test_policies_that_permit_more_than_roles_do_may_need_every_key(world, tmp_path):
    world.put()
    world.settings(tmp_path, 1, FORBID)
    assert world.keys("eu") == {"admin", "all", "search"}
    world.settings(tmp_path, 2, FORBID + PERMIT)
    assert world.keys("eu") == set(world.names.values())
    assert world.roles("eu") == set(world.names.values()) - {"admin"}


@pytest.mark.parametrize(
    ("text", "more"), [("", False), (" ", False), (FORBID, False), (FORBID + PERMIT, True), ("nonsense", True)]
)
def test_what_is_no_policy_may_permit_anything(text, more):
    assert permits_more(text) is more
