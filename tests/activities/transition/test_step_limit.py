"""How fast users come to a new generation once traffic was sent around a lost region."""

from types import SimpleNamespace

import pytest

from activities.transition.step_limit import check_growth, find_growth
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import Transition

M = "ranker"
ROLLOUT = SimpleNamespace(canary=0.1, max_step=0.5)


def shares(*given: tuple[str, int, float]) -> tuple[RouteShare, ...]:
    return tuple(RouteShare(to=to, generation=generation, fraction=fraction) for to, generation, fraction in given)


def moving(*steps: float, origin: int = 1) -> Transition:
    """Users of `us` come to generation 2 in `eu` by these steps, from generation 1."""
    waves = [{"route": [{"model": M, "from": "us", "shares": _blend(step)}]} for step in steps]
    start = [{"model": M, "from": "us", "to": "us", "generation": origin, "fraction": 1.0}]
    return Transition.model_validate({"from": {"traffic": start}, "to": {}, "waves": waves})


def _blend(step: float) -> list[dict[str, object]]:
    both = ({"to": "us", "generation": 1, "fraction": 1.0 - step}, {"to": "eu", "generation": 2, "fraction": step})
    return [share for share in both if share["fraction"]]


def facts(now: tuple[RouteShare, ...], *lost: str) -> SimpleNamespace:
    table = RouteTable(model=M, region="us", revision=1, shares=now, served=())
    return SimpleNamespace(model=M, tables={"us": table}, lost=frozenset(lost))


def test_a_wave_that_goes_on_from_the_one_before_may():
    then = {"us": shares(("us", 1, 0.4), ("eu", 2, 0.6))}

    assert check_growth(facts(shares(("us", 1, 0.9), ("eu", 2, 0.1))), moving(0.1, 0.6, 1.0), 1, then, ROLLOUT) is None


def test_a_wave_whose_users_were_sent_back_around_a_lost_region_may_not_bring_all_of_them():
    result = check_growth(
        facts(shares(("us", 1, 1.0))), moving(0.1, 0.6, 1.0), 2, {"us": shares(("br", 2, 1.0))}, ROLLOUT
    )

    assert result is not None
    assert (result.ok, result.reason, result.place.region) == (False, Reason.REGION_UNREACHABLE, "us")
    assert "100% of those of us would come to the new generation at once, and 50% may" in result.message


@pytest.mark.parametrize(
    ("index", "fraction", "much"), [(0, 0.1, False), (0, 0.2, True), (1, 0.5, False), (1, 0.6, True)]
)
def test_the_canary_bounds_the_first_wave_and_the_step_all_others(index, fraction, much):
    then = {"us": shares(("us", 1, 1.0 - fraction), ("br", 2, fraction))}

    assert (check_growth(facts(shares(("us", 1, 1.0))), moving(0.1, 0.2), index, then, ROLLOUT) is not None) is much


def test_what_a_wave_was_planned_to_bring_is_never_too_much():
    """One process of three that goes over brings a third."""
    then = {"us": shares(("us", 1, 2 / 3), ("us", 2, 1 / 3))}

    assert find_growth(facts(shares(("us", 1, 1.0))), moving(1 / 3), 0, then, 0.1) == {}
    assert find_growth(facts(shares(("us", 1, 1.0))), moving(0.1), 0, then, 0.1) == {"us": pytest.approx(1 / 3)}


@pytest.mark.parametrize("now", [(), (("gone", 1, 1.0),), (("us", 1, 0.0),)])
def test_whom_nobody_answers_whoever_is_ready_answers(now):
    assert find_growth(facts(shares(*now), "gone"), moving(0.1, 0.6), 1, {"us": shares(("br", 2, 1.0))}, 0.5) == {}


def test_a_generation_that_served_before_the_run_is_none_that_comes_new():
    assert (
        find_growth(facts(shares(("us", 1, 1.0))), moving(0.1, origin=2), 0, {"us": shares(("br", 2, 1.0))}, 0.1) == {}
    )


def test_a_region_without_demand_of_its_own_is_nobodys_pace():
    now = facts(shares(("us", 1, 1.0)))
    now.tables["br"] = RouteTable(model=M, region="br", revision=1, shares=shares(("br", 1, 1.0)), served=())

    assert find_growth(now, moving(0.1), 0, {"br": shares(("br", 2, 1.0))}, 0.1) == {}
