"""What the record and the events say of a drain that has come to its end."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.regions.activities import DrainActivities
from ipnext.model.lifecycle.drain import DrainInput, DrainState


@pytest.mark.parametrize(("disaster", "status"), [(True, "declared lost"), (False, "drained")])
def test_the_end_of_a_drain_calls_a_region_drained_only_if_it_was_asked(house, disaster, status):
    with house.store.begin() as unit:
        drain = unit.add_drain("eu-west", disaster=disaster)
        unit.update_drain(drain.id, state=DrainState.DRAINING)
    activities = DrainActivities(house.store, house.infrastructure, lambda: None, lambda *_: None)

    seen = ActivityEnvironment().run(activities.look_at_drain, DrainInput(region="eu-west"))

    assert seen.state is DrainState.DRAINED
    assert ("nothing runs there" in seen.message) is not disaster
    with house.store.read() as unit:
        told = unit.events(None, limit=1)[0].message
    assert told == f"region eu-west is {status}: {seen.message}"
