"""The number of looks at a shadow: each has some ten events in the history of its run, which may have 51,200."""

import pytest

from activities.stages.shadow_plan import WAITS_SECONDS
from ipnext.model.lifecycle.shadow import LONGEST_SHADOW_SECONDS, ShadowSeen, ShadowSettings
from ipnext.model.value import LONGEST_SECONDS
from workflows.stages.shadow import pause_before_look

MOST = 2_000


def count_looks(seen, seconds):
    waited, looks = 0.0, 0
    while waited < seconds and looks <= MOST:
        waited += pause_before_look(seen, waited)
        looks += 1
    return looks


@pytest.mark.parametrize("again", [WAITS_SECONDS, ShadowSettings(seconds=1).look_seconds])
def test_a_wait_of_a_year_has_few_looks(again):
    assert count_looks(ShadowSeen(state="waiting", again_seconds=again), LONGEST_SECONDS) <= MOST


@pytest.mark.parametrize("seconds", [1, 3600, LONGEST_SHADOW_SECONDS])
def test_a_comparison_has_few_looks(seconds):
    again = ShadowSettings(seconds=seconds).look_seconds
    assert count_looks(ShadowSeen(state="comparing", again_seconds=again), seconds) <= MOST


def test_supply_is_looked_for_soon_at_first():
    seen = ShadowSeen(state="waiting", again_seconds=WAITS_SECONDS)
    assert pause_before_look(seen, 0.0) == pause_before_look(seen, 60.0) == WAITS_SECONDS
