"""The queue of an entity, as pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.model.lifecycle.changes.change import ChangeKind, QueuedChange
from workflows.entity.change_queue import can_pass, enqueue, next_of, stops

PUBLISH, ROLLBACK, APPLY, MOVE, RETIRE, REPAIR = (
    ChangeKind(kind) for kind in ("publish", "rollback", "apply", "move", "retire", "repair")
)


def change(kind: ChangeKind, sequence: int) -> QueuedChange:
    return QueuedChange(id=f"c{sequence}", kind=kind, sequence=sequence, generation=1, plan_id="p")


def queued(*kinds: ChangeKind) -> tuple[tuple[QueuedChange, ...], list[QueuedChange]]:
    """The queue after changes of these kinds in this order, and what was superseded."""
    queue: tuple[QueuedChange, ...] = ()
    gone = []
    for sequence, kind in enumerate(kinds, 1):
        queue, superseded = enqueue(queue, change(kind, sequence))
        gone += [found.change for found in superseded]
    return queue, gone


@pytest.mark.parametrize(
    ("kinds", "stay"),
    [
        ((PUBLISH, PUBLISH), [2]),
        ((APPLY, PUBLISH), [2]),
        ((PUBLISH, APPLY), [1, 2]),
        ((PUBLISH, ROLLBACK), [2]),
        ((ROLLBACK, PUBLISH), [1, 2]),
        ((APPLY, ROLLBACK), [1, 2]),
        ((MOVE, PUBLISH), [1, 2]),
        ((MOVE, MOVE), [2]),
        ((PUBLISH, MOVE, ROLLBACK, APPLY, RETIRE), [5]),
    ],
)
def test_a_newer_change_makes_older_ones_of_its_kind_pointless(kinds, stay):
    queue, gone = queued(*kinds)

    assert [c.sequence for c in queue] == stay
    assert sorted(c.sequence for c in gone) == [n for n in range(1, len(kinds) + 1) if n not in stay]


def test_a_publish_that_comes_late_is_superseded_by_the_newer_one_that_waits():
    newer, older = change(PUBLISH, 7), change(PUBLISH, 6)

    queue, gone = enqueue((newer,), older)

    assert (queue, [(found.change, found.by) for found in gone]) == ((newer,), [(older, newer)])


@given(st.permutations([change(kind, n) for n, kind in enumerate([PUBLISH, MOVE, APPLY, PUBLISH, ROLLBACK, MOVE], 1)]))
def test_the_order_of_arrival_does_not_matter_for_what_runs_last(arrivals):
    queue: tuple[QueuedChange, ...] = ()
    lost = []
    for arrived in arrivals:
        queue, gone = enqueue(queue, arrived)
        lost += [found.change for found in gone]

    assert [c.sequence for c in queue] == sorted(c.sequence for c in queue)
    assert {5, 6} <= {c.sequence for c in queue}
    assert len(queue) + len(lost) == len(arrivals), "nothing is lost without a word"


def test_only_an_urgent_newer_change_stops_the_running_one():
    assert stops(change(ROLLBACK, 2), change(PUBLISH, 1))
    assert not stops(change(ROLLBACK, 1), change(PUBLISH, 2))
    assert not stops(change(PUBLISH, 2), change(PUBLISH, 1))
    assert not stops(change(ROLLBACK, 2), change(ROLLBACK, 1))


def test_a_repair_and_what_passes_run_before_older_changes_and_after_a_rollback():
    publish, move, repair, rollback = change(PUBLISH, 1), change(MOVE, 2), change(REPAIR, 3), change(ROLLBACK, 4)

    assert next_of((publish, move, repair), held=False) == repair
    assert next_of((publish, move), held=False) == publish
    assert next_of((publish, move), held=True) is None
    assert next_of((publish, move), held=True, passing=[move.id]) == move
    assert next_of((publish, repair, rollback), held=False) == rollback


def test_a_failover_runs_before_an_older_repair_and_after_a_rollback():
    repair, failover, rollback = change(REPAIR, 1), change(MOVE, 2), change(ROLLBACK, 3)

    assert next_of((repair, failover), held=False, passing=[failover.id]) == failover
    assert next_of((repair, failover), held=True, passing=[failover.id]) == failover
    assert next_of((repair, failover), held=False) == repair
    assert next_of((repair, failover, rollback), held=False, passing=[failover.id]) == rollback


def test_waits_of_emergencies_are_passed_by_failovers_only():
    assert can_pass(ROLLBACK) == can_pass(REPAIR) == {MOVE}
    assert can_pass(PUBLISH) == can_pass(APPLY) == can_pass(MOVE) == {MOVE, REPAIR}


def test_a_rollback_may_pass_a_retirement_which_it_does_not_stop():
    assert can_pass(RETIRE) == {MOVE, REPAIR, ROLLBACK}
    assert not stops(change(ROLLBACK, 2), change(RETIRE, 1))
