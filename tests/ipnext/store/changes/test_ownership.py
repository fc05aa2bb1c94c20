"""Whose the record is, on both engines."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from ipnext.errors import Conflict
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace

OURS = WorkflowNamespace(id="7f", name="default", address="one:7233")
THEIRS = WorkflowNamespace(id="8a", name="default", address="two:7233")


def belong(store, namespace):
    with store.begin() as repository:
        repository.belong_to(namespace)


def test_the_first_namespace_has_the_record_and_another_one_is_told_whose_it_is(store):
    with store.read() as repository:
        assert repository.belongs_to() is None
    belong(store, OURS)
    belong(store, OURS)
    with pytest.raises(
        Conflict, match=r"Temporal namespace default \(7f\), at one:7233 .* not default \(8a\) at two:7233"
    ):
        belong(store, THEIRS)
    with store.read() as repository:
        assert repository.belongs_to() == OURS


def test_a_namespace_that_moved_or_was_renamed_is_the_same_one(store):
    belong(store, OURS)
    belong(store, OURS.model_copy(update={"name": "ipnext", "address": "three:7233"}))


def test_of_two_that_come_at_once_one_has_it(store):
    def claim(namespace):
        try:
            belong(store, namespace)
        except Conflict:
            return None
        return namespace

    with ThreadPoolExecutor(8) as pool:
        had = {found.id for found in pool.map(claim, [OURS, THEIRS] * 8) if found}
    with store.read() as repository:
        assert had == {repository.belongs_to().id}
