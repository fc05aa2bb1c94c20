"""Which snapshots are held: leases keep a snapshot loaded, generations move without a load."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipnext.errors import GenerationNotHeld, InvalidInput
from ipnext.model.deployment.host_control import HostedSnapshot
from serving.snapshots.held_snapshots import HeldSnapshots, hold_key


def hold(snapshot, *generations, **changes):
    values = {
        "model": "m",
        "part": "p",
        "engine": "torch",
        "snapshot": snapshot,
        "digest": f"d{snapshot}",
        "uri": "u",
        "generations": generations,
    }
    return HostedSnapshot(**(values | changes))


def ready(held):
    return {(one.generation, one.snapshot) for one in held.ready}


def test_a_new_snapshot_is_to_be_loaded_and_is_ready_only_then():
    held = HeldSnapshots()
    changes = held.want([hold(1, 1)])
    assert [one.snapshot for one in changes.load] == [1]
    assert not held.ready
    assert len(held.loading) == 1
    with pytest.raises(GenerationNotHeld, match="ready: none"):
        held.lease("m", "p", 1)
    assert held.note_loaded(hold(1, 1), "value")
    assert ready(held) == {(1, 1)}
    assert held.lease("m", "p", 1).value == "value"


def test_the_same_holds_again_change_nothing():
    held = HeldSnapshots()
    held.want([hold(1, 1)])
    held.note_loaded(hold(1, 1), "value")
    changes = held.want([hold(1, 1)])
    assert (changes.load, changes.close) == ((), ())
    assert ready(held) == {(1, 1)}


def test_generations_of_a_loaded_snapshot_change_at_once():
    held = HeldSnapshots()
    held.want([hold(1, 1)])
    held.note_loaded(hold(1, 1), "value")
    assert held.want([hold(1, 2, 3)]).load == ()
    assert ready(held) == {(2, 1), (3, 1)}
    with pytest.raises(GenerationNotHeld, match=r"ready: \[2, 3\]"):
        held.lease("m", "p", 1)


def test_a_snapshot_in_use_is_closed_by_its_last_lease():
    held = HeldSnapshots()
    held.want([hold(1, 1)])
    held.note_loaded(hold(1, 1), "value")
    first, second = held.lease("m", "p", 1), held.lease("m", "p", 1)
    assert held.want([]).close == ()
    with pytest.raises(GenerationNotHeld):
        held.lease("m", "p", 1)
    assert held.release(first) is None
    assert held.release(second) == "value"


def test_an_unused_snapshot_is_closed_when_no_longer_wanted():
    held = HeldSnapshots()
    held.want([hold(1, 1)])
    held.note_loaded(hold(1, 1), "value")
    assert held.want([]).close == ("value",)


def test_a_load_that_ends_after_its_snapshot_was_dropped_is_not_kept():
    held = HeldSnapshots()
    held.want([hold(1, 1)])
    held.want([])
    assert not held.note_loaded(hold(1, 1), "late")
    assert not held.ready


def test_a_failure_is_told_and_stays_until_the_snapshot_is_dropped():
    held = HeldSnapshots()
    held.want([hold(1, 1)])
    held.note_failed(hold(1, 1), "LoadFailed", "broken")
    assert [(one.code, one.generations) for one in held.failures] == [("LoadFailed", (1,))]
    assert not held.loading
    assert held.want([hold(1, 1, 2)]).load == ()
    assert held.failures[0].generations == (1, 2)
    held.want([])
    assert [one.snapshot for one in held.want([hold(1, 1)]).load] == [1]
    assert not held.failures


def test_other_settings_or_content_make_another_thing_to_load():
    assert len({hold_key(hold(1, 1)), hold_key(hold(1, 2)), hold_key(hold(1, 1, settings={"threads": 2}))}) == 2
    assert hold_key(hold(1, 1)) != hold_key(hold(1, 1, digest="other"))


def test_one_generation_with_two_snapshots_is_refused_and_the_former_set_stays():
    held = HeldSnapshots()
    held.want([hold(1, 1)])
    held.note_loaded(hold(1, 1), "value")
    with pytest.raises(InvalidInput, match=r"generation 1 of m\.p has two snapshots, 1 .* and 2"):
        held.want([hold(1, 1), hold(2, 1)])
    assert ready(held) == {(1, 1)}


def test_one_snapshot_named_twice_answers_for_the_union():
    held = HeldSnapshots()
    assert len(held.want([hold(1, 1), hold(1, 2)]).load) == 1
    held.note_loaded(hold(1, 1), "value")
    assert ready(held) == {(1, 1), (2, 1)}


def test_relatives_are_the_loaded_snapshots_of_the_same_part_engine_and_settings_and_are_kept_until_given_back():
    held = HeldSnapshots()
    others = (hold(3, 3, part="q"), hold(4, 4, engine="e"), hold(5, 5, settings={"threads": 2}), hold(6, 6))
    held.want([hold(1, 1), hold(2, 2), *others])
    for each in (hold(1, 1), hold(2, 2), *others[:-1]):
        held.note_loaded(each, f"value {each.snapshot}")
    leases = held.relatives(hold(7, 7))
    assert {lease.digest: lease.value for lease in leases} == {"d1": "value 1", "d2": "value 2"}
    assert held.want([hold(2, 2)]).close == ("value 3", "value 4", "value 5")
    assert [held.release(lease) for lease in leases] == ["value 1", None]


class Holding(RuleBasedStateMachine):
    """Any order of wants, loads, leases and releases: nothing in use is closed, nothing is closed twice or lost."""

    def __init__(self):
        super().__init__()
        self.held = HeldSnapshots()
        self.loads: list[HostedSnapshot] = []
        self.open: set[int] = set()
        self.leases = []
        self.count = 0
        self.wanted: set[int] = set()

    def close(self, value):
        assert value in self.open, "closed twice or never loaded"
        assert all(lease.value != value for lease in self.leases), "closed while in use"
        self.open.remove(value)

    @rule(numbers=st.sets(st.integers(1, 4)))
    def want(self, numbers):
        changes = self.held.want([hold(number, number) for number in sorted(numbers)])
        self.wanted = numbers
        self.loads += changes.load
        for value in changes.close:
            self.close(value)

    @rule(data=st.data())
    def finish_a_load(self, data):
        if not self.loads:
            return
        done = self.loads.pop(data.draw(st.integers(0, len(self.loads) - 1)))
        self.count += 1
        self.open.add(self.count)
        if not self.held.note_loaded(done, self.count):
            self.close(self.count)

    @rule(number=st.integers(1, 4))
    def lease(self, number):
        try:
            lease = self.held.lease("m", "p", number)
        except GenerationNotHeld:
            return
        assert lease.snapshot == number
        self.leases.append(lease)

    @rule(data=st.data())
    def release(self, data):
        if not self.leases:
            return
        lease = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        value = self.held.release(lease)
        if value is not None:
            self.close(value)

    @invariant()
    def only_wanted_or_used_things_are_open(self):
        used = {lease.value for lease in self.leases}
        assert len(self.open - used) <= len(self.wanted)
        assert {one.snapshot for one in self.held.ready} <= self.wanted


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=60, stateful_step_count=30)
