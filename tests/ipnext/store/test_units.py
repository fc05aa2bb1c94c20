"""What one unit of work reads: a row by its key once, and anew after the lock of the plan in force."""

from contextlib import contextmanager

from sqlalchemy import event


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
