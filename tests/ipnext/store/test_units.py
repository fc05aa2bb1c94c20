"""What one unit of work reads: a row by its key once, and anew after the lock of the plan in force."""

from contextlib import contextmanager

import pytest
from sqlalchemy import event

from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.store import unit_of_work


@contextmanager
def sent(store, table):
    """Statements that select from a table."""
    found = []

    def add(_connection, _cursor, statement, *_):
        if f"FROM {table} " in " ".join(statement.split()) + " ":
            found.append(statement)

    event.listen(store._engine, "before_cursor_execute", add)
    yield found
    event.remove(store._engine, "before_cursor_execute", add)


def test_a_row_is_read_once_by_its_key(applied, publish):
    publish("c1", dense="a", sparse="b")
    with sent(applied, "generations") as found, applied.read() as repository:
        assert repository.generation("ctr", 1) == repository.generation("ctr", 1)
    assert len(found) == 1


def test_what_was_read_before_the_plan_was_locked_is_read_again(applied, publish):
    publish("c1", dense="a", sparse="b")
    with sent(applied, "generations") as found, applied.begin("ctr") as repository:
        repository.generation("ctr", 1)
        repository.lock_plan_in_force()
        repository.generation("ctr", 1)
    assert len(found) == 2


def test_a_write_is_seen_by_the_reads_after_it(applied):
    with applied.begin("ctr") as repository:
        assert repository.model("ctr").target_generation is None
        repository.update_model("ctr", target_generation=3)
        assert repository.model("ctr").target_generation == 3


@pytest.mark.parametrize(
    ("table", "read"),
    [
        ("models", lambda repository: repository.model("ctr")),
        ("placements", lambda repository: repository.placement("ctr")),
        ("deployments", lambda repository: repository.deployments("ctr")),
        ("routes", lambda repository: repository.routes("ctr")),
        ("drains", lambda repository: repository.drains()),
    ],
)
def test_a_question_is_answered_by_one_statement_until_the_unit_writes(applied, table, read):
    with sent(applied, table) as found, applied.begin("ctr") as repository:
        assert read(repository) == read(repository)
        assert len(found) == 1
        repository.add_event("ctr", "Started", "")
        read(repository)
        assert len(found) == 2


def test_a_write_of_columns_is_seen_in_the_row_objects(applied, publish):
    publish("c1", dense="a", sparse="b")
    with applied.begin("ctr") as repository:
        repository.set_layout("ctr", 1, None)
        repository.set_generation_state("ctr", 1, GenerationState.SERVING)
        assert repository.set_layout("ctr", 1, None).state is GenerationState.SERVING


def test_a_unit_that_only_asks_for_columns_makes_no_row_objects(applied, publish, monkeypatch):
    """Making them takes more than a statement does: each activity has several units."""
    change = publish("c1", dense="a", sparse="b")
    monkeypatch.delattr(unit_of_work, "Session")
    with applied.begin("ctr") as repository:
        repository.update_change(change.id, state=ChangeState.RUNNING, run_id="run")
        repository.update_model("ctr", target_generation=1)
        repository.set_condition("ctr", ConditionType.SERVING, "False", Reason.PROGRESSING)
        repository.set_generation_state("ctr", 1, GenerationState.VALIDATED)
        repository.check_only_mover("ctr", change.id)
    with applied.read() as repository:
        assert repository.change(change.id).run_id == "run"
        assert repository.generation("ctr", 1).state is GenerationState.VALIDATED
        assert repository.conditions("ctr")[0].reason is Reason.PROGRESSING
