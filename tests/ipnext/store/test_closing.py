"""A store that is closed leaves no connection open, also one that a unit of work had then."""

import pytest

from ipnext.store.store import Store

SPOKEN_TO = "SELECT 1"


def connection_of(repository):
    """The driver's own connection of a unit of work."""
    return repository._session.connection().connection.dbapi_connection


@pytest.mark.parametrize("unit", ["begin", "read"])
def test_the_connection_of_an_open_unit_ends_with_the_unit(store, unit):
    with getattr(store, unit)() as repository:
        used = connection_of(repository)
        store.close()
        used.cursor().execute(SPOKEN_TO)

    with pytest.raises(Exception, match="closed"):
        used.cursor().execute(SPOKEN_TO)


def test_a_unit_after_the_end_leaves_no_connection_either(store):
    store.close()
    with store.read() as repository:
        used = connection_of(repository)

    with pytest.raises(Exception, match="closed"):
        used.cursor().execute(SPOKEN_TO)


def test_idle_connections_end_at_once(url):
    store = Store.open(url)
    with store.read() as repository:
        used = connection_of(repository)
    used.cursor().execute(SPOKEN_TO)

    store.close()

    with pytest.raises(Exception, match="closed"):
        used.cursor().execute(SPOKEN_TO)
