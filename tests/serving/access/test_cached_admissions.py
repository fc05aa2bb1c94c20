"""Admissions that the guard caches: what they spare, and that they admit nothing else."""

from serving.access import guard
from serving.access.access_list import Callers
from tests.serving.access.world import CLOSED


def test_a_credential_is_proved_once_for_each_model_table_and_list(world, monkeypatch):
    world.accesses["foreign"] = ("ads", CLOSED)
    key, proved = world.key(), []
    prove = Callers.prove
    monkeypatch.setattr(Callers, "prove", lambda self, text: proved.append(text) or prove(self, text))
    assert [world.status(model, key) for model in ("secret", "secret", "foreign", "secret")] == [200] * 4
    assert len(proved) == 2
    world.publish()
    assert [world.status("secret", key) for _ in range(2)] == [200] * 2
    assert len(proved) == 3


def test_an_admission_admits_nothing_but_the_same_credential_to_the_same_model(world):
    key = world.key()
    assert world.status("secret", key) == 200
    assert world.status("foreign", key) == 404, "another owner's"
    assert world.status("unknown", key) == 404
    assert world.status("secret", key + "x") == 401
    assert world.status("secret", key, scheme="Basic") == 401
    assert world.status("secret") == 401
    assert world.status("secret", key, **{"x-ipnext-no-capacity": "1"}) == 503
    assert world.status("secret", key) == 200


def test_few_admissions_are_remembered(world, monkeypatch):
    monkeypatch.setattr(guard, "MOST_KNOWN", 2)
    keys = [world.key() for _ in range(5)]
    assert [world.status("secret", key) for key in (*keys, *keys)] == [200] * 10
    assert len(world.guard._known) <= 2


def test_no_credential_is_kept_in_clear(world):
    key = world.key()
    assert world.status("secret", key) == 200
    assert len(world.guard._known) == 1
    assert key not in repr(world.guard._known)
