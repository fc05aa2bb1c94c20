"""Which list the router goes by, and that an old one stays in force for a stated time at most."""

import pytest

from ipnext.errors import StaleWrite, Unavailable
from ipnext.infra.router import access_delivery
from ipnext.infra.router.access_delivery import AGAIN_SECONDS, AccessDelivery
from ipnext.infra.router.access_file import AccessFile
from ipnext.model.access.predictions import AccessList, AccessRevision, AccessSpec, ModelAccess

NONE = AccessRevision(revision=0)
STALE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """The clock of a test goes on by itself, with each look at it."""
    monkeypatch.setattr(access_delivery, "_PAUSE_SECONDS", 0.0)


class Clock:
    now = 100.0

    def __call__(self):
        self.now += 0.001
        return self.now


class Router:
    """A router: `follows` its file, `takes` what it is sent, or neither."""

    def __init__(self, file):
        self.file, self.access = file, NONE
        self.follows, self.takes = True, True
        self.sent, self.withdrawn, self.open = [], 0, None

    async def look(self):
        if self.follows and self.file.exists():
            found = AccessList.model_validate_json(self.file.read_bytes())
            self.access = AccessRevision.of(found)

    async def put_access(self, access):
        self.sent.append(access.revision)
        if not self.takes:
            msg = "no"
            raise Unavailable(msg)
        self.access = AccessRevision.of(access)

    async def withdraw_access(self, withdrawal):
        self.open = withdrawal.open
        if self.access.revision < withdrawal.below:
            self.withdrawn += 1
            self.access = NONE


class World:
    def __init__(self, directory):
        self.directory, self.clock = directory, Clock()
        self.router = Router(directory / "followed.json")
        self.file = AccessFile(directory / "kept.json", directory / "followed.json", region="eu")
        self.delivery = AccessDelivery(self.file, self.router, stale_seconds=STALE_SECONDS, clock=self.clock)

    async def put(self, revision):
        return (await self.delivery.put(listed(revision), ())).revision

    def fill_disk(self):
        for name in ("kept.json", "followed.json"):
            (self.directory / f".{name}.new").mkdir()

    async def after(self, seconds):
        self.clock.now += seconds
        await self.delivery.look()


def listed(revision):
    return AccessList(revision=revision, digest=f"of {revision}")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_a_list_is_in_force_once_the_router_goes_by_it(world):
    assert await world.put(3) == 3
    assert world.delivery.in_force == AccessRevision(revision=3, digest="of 3")
    assert world.delivery.behind_seconds is None
    assert world.router.sent == []
    with pytest.raises(StaleWrite):
        await world.put(2)


async def test_a_list_that_the_router_does_not_take_is_not_acknowledged(world):
    await world.put(3)
    world.router.follows = world.router.takes = False
    assert await world.put(4) == 3
    assert world.delivery.in_force.revision == 3
    world.router.follows = True
    await world.router.look()
    await world.after(1)
    assert (world.delivery.in_force.revision, world.delivery.behind_seconds) == (4, None)


async def test_a_list_that_can_not_be_written_is_sent_to_the_router(world):
    await world.put(3)
    world.fill_disk()
    assert await world.put(4) == 4
    assert world.router.sent == [4]
    world.router.access = NONE  # it starts again, and finds no file
    await world.after(AGAIN_SECONDS)
    assert world.delivery.in_force.revision == 4


async def test_an_old_list_stays_in_force_for_the_stated_time_at_most(world):
    await world.put(3)
    world.router.follows = world.router.takes = False
    await world.put(4)
    await world.after(STALE_SECONDS - 5)
    assert (world.router.withdrawn, world.delivery.in_force.revision) == (0, 3)
    assert STALE_SECONDS - 5 < world.delivery.behind_seconds < STALE_SECONDS
    await world.after(5)
    assert (world.router.withdrawn, world.delivery.in_force) == (1, NONE)
    world.router.takes = True
    await world.after(AGAIN_SECONDS)
    assert (world.delivery.in_force.revision, world.delivery.behind_seconds) == (4, None)


async def test_an_old_list_ends_for_all_models_but_those_that_the_newest_names_as_open(world):
    def spec(predictions):
        return AccessSpec(predictions=predictions)

    def listed(revision, **models):
        accesses = tuple(ModelAccess(model=m, owner="o", access=spec(p)) for m, p in models.items())
        return AccessList(revision=revision, digest=f"of {revision}", models=accesses)

    routed = {"a", "b", "c"}
    await world.delivery.put(listed(3, a="open", b="open"), routed)
    world.router.follows = world.router.takes = False
    await world.delivery.put(listed(4, a="open", b="authenticated", elsewhere="open"), routed)
    await world.after(STALE_SECONDS)
    assert world.router.open == ("a",)


async def test_another_list_of_the_same_number_is_not_the_newest(world):
    await world.put(3)
    world.router.access = AccessRevision(revision=3, digest="other")
    assert world.delivery.in_force.digest == "other"


async def test_an_agent_without_a_list_says_so_although_its_router_has_one(world):
    world.router.access = AccessRevision(revision=3, digest="of 3")
    assert world.delivery.in_force == NONE, "the sender sends it again"
