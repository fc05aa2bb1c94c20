"""How far each wave brings the traffic, told to those who watch."""

import pytest

from ipnext.model.planning.transition import FleetState, GenerationShare, RouteChange, Share, Transition, Wave
from ipnext.model.planning.wave_progress import arrived_words, measure_arrival


def answered(*rows):
    return FleetState(
        traffic=tuple(
            GenerationShare(model="m", origin=origin, to=to, generation=generation, fraction=fraction)
            for origin, to, generation, fraction in rows
        )
    )


def routed(origin, *rows):
    shares = tuple(Share(to=to, generation=generation, fraction=fraction) for to, generation, fraction in rows)
    return RouteChange(model="m", origin=origin, shares=shares)


def test_a_wave_that_routes_one_region_leaves_the_other_where_it_is():
    transition = Transition(
        origin=answered(("eu", "eu", 1, 1.0), ("us", "us", 1, 1.0)),
        to=answered(("eu", "eu", 2, 1.0), ("us", "us", 2, 1.0)),
        waves=(
            Wave(route=(routed("eu", ("eu", 1, 0.8), ("eu", 2, 0.2)),)),
            Wave(),
            Wave(route=(routed("eu", ("eu", 2, 1.0)), routed("us", ("us", 2, 1.0)))),
        ),
    )
    assert measure_arrival(transition, "m") == ({"eu": 0.2, "us": 0}, {"eu": 0.2, "us": 0}, {"eu": 1.0, "us": 1.0})


def test_a_move_of_the_same_generation_counts_by_the_region_that_answers():
    transition = Transition(
        origin=answered(("eu", "eu", 1, 0.5), ("eu", "us", 1, 0.5)),
        to=answered(("eu", "us", 1, 1.0)),
        waves=(Wave(route=(routed("eu", ("us", 1, 1.0)),)),),
    )
    assert measure_arrival(transition, "m") == ({"eu": 1.0},)


def test_the_traffic_of_other_models_does_not_count():
    other = RouteChange(model="n", origin="eu", shares=(Share(to="eu", generation=9, fraction=1.0),))
    transition = Transition(
        origin=answered(("eu", "eu", 1, 1.0)), to=answered(("eu", "eu", 2, 1.0)), waves=(Wave(route=(other,)),)
    )
    assert measure_arrival(transition, "m") == ({"eu": 0},)


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ({"eu": 0.2, "us": 0.2}, "20%"),
        ({"us": 1.0, "eu": 0.125}, "12.5% of eu, 100% of us"),
        ({}, "none"),
    ],
)
def test_words_name_the_regions_only_where_they_differ(fractions, words):
    assert arrived_words(fractions) == words
