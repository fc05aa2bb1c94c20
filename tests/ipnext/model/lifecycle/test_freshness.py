"""The window of a part's freshness: shares of 24 clock hours, lateness and breaches."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.model.lifecycle.freshness import (
    WINDOW_HOURS,
    ServingSnapshot,
    extend_window,
    fresh_share,
    view_freshness,
)

T0 = datetime(2026, 12, 1, 10, 0, tzinfo=UTC)


def after(seconds):
    return T0 + timedelta(seconds=seconds)


def serving(**given):
    basis = {"model": "ctr", "part": "dense", "region": "north", "number": 3, "published_at": T0, "since": T0}
    return ServingSnapshot(**{**basis, "accounted_at": T0, **given})


def test_time_counts_as_late_from_the_target_on():
    window = extend_window((), T0, after(100), late_from=after(90))
    assert fresh_share(window) == pytest.approx(0.9)
    assert fresh_share(()) == 1.0


def test_a_time_over_several_hours_is_split_at_them():
    window = extend_window((), after(1800), after(2 * 3600 + 600), late_from=after(3600))
    assert [(each.observed, each.late) for each in window] == [(1800, 0), (3600, 3600), (600, 600)]


def test_two_extensions_are_as_one():
    halves = extend_window(
        extend_window((), T0, after(50), late_from=after(30)), after(50), after(100), late_from=after(30)
    )
    assert halves == extend_window((), T0, after(100), late_from=after(30))


def test_the_window_has_a_day_and_forgets_what_is_older():
    late = extend_window((), T0, after(3600), late_from=T0)
    window = extend_window(late, after(3600), after(40 * 24 * 3600 + 1), late_from=after(50 * 24 * 3600))
    assert len(window) == WINDOW_HOURS
    assert fresh_share(window) == 1.0


def test_an_age_counts_from_the_training_and_else_from_the_publication():
    assert serving().age_seconds(after(60)) == 60
    assert serving(trained_at=after(-40)).age_seconds(after(60)) == 100


def test_a_late_part_breaches_once_the_objective_leaves_nothing():
    found = serving(target_seconds=900.0, objective=0.5)
    assert not found.is_late(after(900))
    assert found.is_late(after(901))
    assert not found.is_breached(after(1700))
    assert found.is_breached(after(1900))
    assert found.share_at(after(1800)) == pytest.approx(0.5)


def test_a_breach_ends_with_a_fresh_snapshot_although_the_share_is_still_low():
    late = serving(target_seconds=10.0, objective=0.99)
    window = late.window_at(after(600))
    fresh = late.model_copy(
        update={"number": 4, "published_at": after(600), "window": window, "accounted_at": after(600)}
    )
    assert fresh.share_at(after(605)) < 0.99
    assert not fresh.is_breached(after(605))
    assert fresh.is_breached(after(611)), "nothing is left of what the objective allows"


def test_a_part_without_a_target_is_never_late():
    found = view_freshness(serving(), after(10**6))
    assert (found.late, found.fresh_share, found.objective, found.breached_since) == (None, None, None, None)
