"""When keys that only ask gateways were used last, from the regions into the store."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.access.keys import draw_key, parse_key
from ipnext.model.access.rights import Role
from ipnext.platform.access.key_uses import NOTED_EVERY_SECONDS, KeyUseCollector

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def collector(rooms):
    made = KeyUseCollector(rooms.store, rooms.infrastructure)
    yield made
    made.close()


@pytest.fixture
def key(rooms):
    """The id of a key that was not used for a long time."""
    return parse_key(rooms.add_key("app", Role.CALLER, last_used_at=None)).id


def look(collector):
    for asked in collector.look():
        asked.result()


def last_use(rooms, key):
    with rooms.store.read() as unit:
        return unit.find_key(key).last_used_at


def use(rooms, region, key, at):
    rooms.infrastructure.use_key(region, key, at.timestamp())


def test_the_newest_use_in_any_region_is_the_last_one(rooms, collector, key):
    look(collector)
    assert last_use(rooms, key) is None
    use(rooms, "eu", key, BEGAN + timedelta(hours=1))
    use(rooms, "us", key, BEGAN)
    look(collector)
    assert last_use(rooms, key) == BEGAN + timedelta(hours=1)
    use(rooms, "us", key, BEGAN + timedelta(hours=2))
    look(collector)
    assert last_use(rooms, key) == BEGAN + timedelta(hours=2)


def test_a_key_is_written_down_once_a_minute_and_a_report_that_says_nothing_new_writes_nothing(rooms, collector, key):
    use(rooms, "eu", key, BEGAN)
    look(collector)
    revision = rooms.store.revision()
    use(rooms, "us", key, BEGAN + timedelta(seconds=NOTED_EVERY_SECONDS - 1))
    look(collector)
    assert rooms.store.revision() == revision
    use(rooms, "us", key, BEGAN + timedelta(seconds=NOTED_EVERY_SECONDS))
    look(collector)
    assert last_use(rooms, key) == BEGAN + timedelta(seconds=NOTED_EVERY_SECONDS)


def test_keys_that_a_region_makes_up_take_no_memory(rooms, collector, key):
    for _ in range(5):
        use(rooms, "us", draw_key().id, BEGAN)
    use(rooms, "us", key, BEGAN)
    look(collector)
    assert collector._noted.keys() == {key}


def test_a_region_whose_clock_is_ahead_puts_no_use_into_the_future(rooms, collector, key):
    use(rooms, "eu", key, datetime.now(UTC) + timedelta(days=30))
    look(collector)
    assert last_use(rooms, key) <= datetime.now(UTC)


def test_a_region_that_is_away_and_a_key_that_nobody_knows_keep_no_other_use_from_being_noted(rooms, collector, key):
    rooms.infrastructure.cut("eu")
    use(rooms, "eu", key, BEGAN + timedelta(hours=1))
    use(rooms, "us", key, BEGAN)
    use(rooms, "us", draw_key().id, BEGAN)
    look(collector)
    assert last_use(rooms, key) == BEGAN
    rooms.infrastructure.mend("eu")
    look(collector)
    assert last_use(rooms, key) == BEGAN + timedelta(hours=1)
