"""The schedule: drawn from its seed, whole in each round."""

from collections import Counter
from itertools import islice

import pytest

from tests.nemesis.faults.schedule import KINDS, PLACES, SHORT_SECONDS, few, schedule

ROUND = 33 + len(PLACES[::11])
"""Nine roles killed, nine stopped, five links cut, six kinds of workflows terminated, a region away for long, two roles
that swap builds, a limit; and one boundary of eleven."""


def test_the_same_seed_gives_the_same_faults_and_another_one_others():
    first, again, other = (list(islice(schedule(seed), 50)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_each_round_strikes_every_role_and_link_in_each_way():
    drawn = list(islice(schedule(3), ROUND))
    assert len({(fault.kind, fault.role) for fault in drawn}) == ROUND
    assert {fault.kind for fault in drawn} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_chosen_kinds_are_drawn(kind):
    assert {fault.kind for fault in islice(schedule(1, (kind,)), 30)} == {kind}


def test_faults_of_the_control_plane_touch_no_data():
    touching = {(f.kind, f.role) for f in islice(schedule(1), 100) if f.touches_data}
    assert {role for _, role in touching}.isdisjoint({"worker", "workers", "api", "temporal", *PLACES})
    assert ("stop", "agent") not in touching
    assert ("kill", "agent") not in touching
    assert ("kill", "supervisor") in touching


@pytest.mark.parametrize("each", [1, 3])
def test_a_few_faults_are_so_many_of_each_chosen_kind_and_short(each):
    found = few(5, ("kill", "stop", "partition"), each)
    assert Counter(fault.kind for fault in found) == {"kill": each, "stop": each, "partition": each}
    assert max(fault.seconds for fault in found) <= SHORT_SECONDS
