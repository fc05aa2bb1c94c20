"""Freezes and overrides; on both engines."""

from datetime import UTC, datetime

import pytest

from ipnext.errors import Conflict, NotFound, StaleWrite
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.freeze import BindingFreeze, FreezeManifest, Frozen

UNTIL = datetime(2026, 12, 27, tzinfo=UTC)


def freeze(name: str = "holidays", *, reason: str = "we rest") -> FreezeManifest:
    window = {"start": "2026-12-20T00:00", "duration": "P7D", "timeZone": "Europe/Berlin"}
    spec = {"reason": reason, "windows": [window], "scope": {"models": ["ctr*"]}}
    return FreezeManifest.model_validate(
        {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": name}, "spec": spec}
    )


def test_a_freeze_comes_back_as_it_was_written_and_its_version_rises_with_each_change(store):
    with store.begin() as unit:
        first = unit.put_freeze(freeze(), expected_version=0)
        same = unit.put_freeze(freeze(), expected_version=1)
        changed = unit.put_freeze(freeze(reason="we work"), expected_version=None)
        unit.put_freeze(freeze("a"), expected_version=None)
    with store.read() as unit:
        assert [each.manifest.name for each in unit.freezes()] == ["a", "holidays"]
        assert unit.freeze("holidays").manifest == freeze(reason="we work")
    assert [first.version, same.version, changed.version] == [1, 1, 2]


def test_a_write_that_expects_another_version_is_refused(store):
    with store.begin() as unit:
        with pytest.raises(StaleWrite, match=r"does not exist \(version 0\).*expects version 3"):
            unit.put_freeze(freeze(), expected_version=3)
        unit.put_freeze(freeze(), expected_version=None)
        with pytest.raises(StaleWrite, match="is at version 1"):
            unit.put_freeze(freeze(reason="x"), expected_version=0)
        with pytest.raises(StaleWrite, match="is at version 1"):
            unit.delete_freeze("holidays", expected_version=2)


def test_a_freeze_that_is_taken_away_is_not_known_any_more(store):
    with store.begin() as unit:
        unit.put_freeze(freeze(), expected_version=None)
        assert unit.delete_freeze("holidays", expected_version=1).manifest == freeze()
        assert unit.freezes() == ()
        with pytest.raises(NotFound, match="'holidays' is not known"):
            unit.freeze("holidays")


def test_an_override_is_given_once_and_names_what_it_passes(applied, publish):
    publish("c1", dense="a", sparse="b")
    binding = BindingFreeze(name="holidays", reason="we rest", until=UNTIL)
    with applied.begin("ctr") as unit:
        assert unit.freeze_override("c1") is None
        given = unit.override_freezes("c1", who="ann", reason="urgent", passes=Frozen(until=UNTIL, freezes=(binding,)))
        again = unit.override_freezes("c1", who="bob", reason="too", passes=None)
    assert given == again
    assert (given.model, given.who, given.reason, given.freezes) == ("ctr", "ann", "urgent", ("holidays",))


def test_what_never_waits_or_has_ended_has_nothing_to_override(applied, publish):
    publish("c1", dense="a", sparse="b")
    with applied.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.ROLLBACK, change_id="c2", generation=1)
        with pytest.raises(Conflict, match="is a rollback, which no freeze holds back"):
            unit.override_freezes("c2", who="ann", reason="r", passes=None)
        unit.update_change("c1", state=ChangeState.DONE)
        with pytest.raises(Conflict, match="is done already"):
            unit.override_freezes("c1", who="ann", reason="r", passes=None)
        with pytest.raises(NotFound):
            unit.override_freezes("c9", who="ann", reason="r", passes=None)


def test_changes_that_wait_are_found_until_they_go_on(applied, publish):
    for number in (1, 2, 3):
        publish(f"c{number}", dense=f"a{number}", sparse=f"b{number}")
    with applied.begin("ctr") as unit:
        unit.update_change("c1", state=ChangeState.RUNNING, reason=Reason.PROGRESSING)
        unit.update_change("c2", state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen until ...")
        unit.update_change("c3", state=ChangeState.RUNNING, reason=Reason.FROZEN)
        assert [change.id for change in unit.frozen_changes()] == ["c2", "c3"]
        unit.update_change("c2", state=ChangeState.RUNNING, reason=Reason.PROGRESSING, message="")
        unit.update_change("c3", state=ChangeState.SUPERSEDED)
        assert unit.frozen_changes() == ()


def test_a_unit_of_one_model_may_not_write_what_all_share(applied):
    with applied.begin("ctr") as unit, pytest.raises(RuntimeError, match="what all models share"):
        unit.put_freeze(freeze(), expected_version=None)
