"""What one more of a limit saves is what planning again with one more says, where that is proved."""

import pytest

from planner.explain import marginal_value as worth
from planner.explain.marginal_value import savings, worth_of
from planner.explain.what_if import apply_changes, change_of
from planner.solve import solve


def test_savings_are_the_difference_of_two_plans(problem, model):
    parts = {"p": {"h": (2.0, 100.0), "g": (1.0, 30.0)}}
    stated = problem(
        model("m", {"a": 220.0}, parts=parts, budget_per_hour=4.0),
        model("n", {"a": 100.0}, owner="poor"),
        supply={"a/h": 3.0, "a/g": 1.0, "b/h": 0.0},
        owners=[{"owner": "poor", "budget_per_hour": 0.5}],
        limits={"max_moves": 3},
    )
    now = solve(stated).objective
    for rule, change in {
        "supply a/h": change_of("supply", "a/h=+1"),
        "supply a/g": change_of("supply", "a/g=+1"),
        "supply b/h": change_of("supply", "b/h=+1"),
        "budget model m": change_of("budget", "model/m=+1"),
        "budget owner poor": change_of("budget", "owner/poor=+1"),
        "moves": change_of("limit", "max_moves=+1"),
    }.items():
        saved = now - solve(apply_changes(stated, [change])).objective
        assert savings(stated)[rule] == pytest.approx(saved, abs=1e-4 * now), rule


def test_a_unit_that_is_no_replica_saves_nothing_though_it_has_a_price(problem, model):
    found = worth_of(problem(model("m", {"a": 200.0}, parts={"p": {"h": (2.0, 100.0)}}), supply={"a/h": 2.0}))
    assert found.saves == {"supply a/h": 0.0}
    assert found.price["supply a/h"] > 400


def test_what_is_not_proved_is_not_said(problem, model, monkeypatch):
    stated = problem(model("m", {"a": 300.0}), supply={"a/h": 1.0})
    real = worth.solve

    def vague(asked, method):
        plan = real(asked, method=method)
        return plan.model_copy(update={"gap": 0.5}) if asked.supply[0].units > 1 else plan

    monkeypatch.setattr(worth, "solve", vague)
    assert savings(stated) == {}
    monkeypatch.setattr(
        worth, "solve", lambda asked, method: real(asked, method=method).model_copy(update={"gap": 0.5})
    )
    assert savings(stated) == {}


def test_a_larger_fleet_has_prices_alone(problem, model, monkeypatch):
    stated = problem(model("m", {"a": 300.0}), supply={"a/h": 1.0})
    monkeypatch.setattr(worth, "MOST_PLANNED", 0)
    assert worth_of(stated).saves == {}
    assert worth_of(stated).price["supply a/h"] == pytest.approx(999.0)
