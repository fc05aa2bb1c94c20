"""With which limit of histories the server of a run starts."""

from tests.nemesis.faults.limits import set_limit, with_limit

SERVER = ("temporal", "server", "start-dev")


def test_the_server_starts_with_the_limit_that_is_set_and_as_usual_afterwards(tmp_path):
    assert with_limit(tmp_path, "temporal", SERVER) == SERVER

    set_limit(tmp_path, 150)
    limited = with_limit(tmp_path, "temporal", SERVER)

    assert list(limited) == [*SERVER, "--dynamic-config-value", "limit.historyCount.error=150"]
    assert with_limit(tmp_path, "api", SERVER) == SERVER

    set_limit(tmp_path, None)
    assert with_limit(tmp_path, "temporal", SERVER) == SERVER
