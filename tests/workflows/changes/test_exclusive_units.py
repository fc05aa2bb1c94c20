"""Which units of work of a publish are of all models: those hold up every other writer."""

import sys
from contextlib import contextmanager

from ipnext.model.lifecycle.changes.change import ChangeState


def function_of(frame):
    """The function of the activities that a frame stands in."""
    return frame.f_code.co_name


async def test_no_unit_of_a_publish_is_one_of_all_models(house, model, workers, carried_out, monkeypatch):
    exclusive, others, begin = [], [], house.store.begin

    @contextmanager
    def watched(scope=None):
        (exclusive if scope is None else others).append(function_of(sys._getframe(2)))
        with begin(scope) as repository:
            yield repository

    house.apply(model)
    change = house.publish(model, 1)
    monkeypatch.setattr(house.store, "begin", watched)

    done = await carried_out(change)

    assert done.state is ChangeState.DONE
    assert exclusive == []
    assert {"_place_once", "_draft_transition", "_finish"} <= set(others)
