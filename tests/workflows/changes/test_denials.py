"""A denied snapshot leaves what serves, on real workflows."""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.names import denial_rollback_id
from ipnext.platform.denials import carry_out_denials

pytestmark = [pytest.mark.usefixtures("workers"), pytest.mark.trust]


@pytest.fixture
def deny(house, model):
    """Deny a part's snapshot by one of its files, as the API does; the denial's number."""

    def call(number, part="dense"):
        with house.store.begin() as unit:
            files = {each.path: each.sha256 for each in unit.snapshot(model, part, number).manifest.files}
            denial = unit.put_denial(files["weights.safetensors"], reason="poisoned", denied_by="ann")
        carry_out_denials(house.store)
        return denial.number

    return call


async def test_what_serves_goes_back_and_does_not_stay_warm(house, model, carried_out, deny):
    house.apply(model)
    for number in (1, 2, 3):
        await carried_out(house.publish(model, number))
    number = deny(3)
    assert number == deny(3), "a digest is denied once"

    change = await carried_out(house.change(denial_rollback_id(model, number, 1)))

    assert (change.kind, change.state, change.generation) == (ChangeKind.ROLLBACK, ChangeState.DONE, 2)
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    assert set(house.held(model).values()) == {(2,)}
    assert house.condition(model).status == "True"


async def test_a_publish_that_was_recorded_before_the_denial_is_refused(house, model, carried_out, deny):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    waiting = house.publish(model, 2)
    deny(2)

    change = await carried_out(waiting)

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.SNAPSHOT_DENIED)
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
