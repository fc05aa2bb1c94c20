"""A conflict is a minimal set of limits: together they forbid, without any one of them they do not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.errors import DeadlineExceeded, InvalidInput
from ipnext.model.planning.plan import Problem
from planner.explain import conflict as conflicts
from planner.explain.conflict import ALL, KEPT, Limit, conflict, limits_of, servable, without
from planner.solve import solve


def names(found):
    return {member.name for member in found.members}


@st.composite
def crowded(draw):
    """One or two models on two regions that hardly ever hold them."""
    models = [
        {
            "model": f"m{i}",
            "owner": "o",
            "latency_tolerance_ms": draw(st.sampled_from([2.0, 20.0])),
            "survive": draw(st.sampled_from(["region", "none"])),
            "budget_per_hour": draw(st.sampled_from([None, 2.0, 6.0])),
            "demand": [{"region": r, "qps": draw(st.sampled_from([40.0, 90.0]))} for r in ("a", "b")],
            "parts": [
                {
                    "part": part,
                    "min_replicas": draw(st.sampled_from([1, 3])),
                    "options": [{"hardware": kind, "units": 1.0, "qps": 50.0}],
                }
                for part, kind in [("p", "g"), ("q", "h")][: draw(st.integers(1, 2))]
            ],
        }
        for i in range(draw(st.integers(1, 2)))
    ]
    return Problem.model_validate(
        {
            "regions": ["a", "b"],
            "rtt_ms": [[1.0, 10.0], [10.0, 1.0]],
            "hardware": ["g", "h"],
            "supply": [
                {"region": r, "hardware": h, "units": draw(st.sampled_from([1.0, 2.0, 4.0])), "unit_cost": 1.0}
                for r in ("a", "b")
                for h in ("g", "h")
                if (r, h) == ("a", "g") or draw(st.integers(0, 5))
            ],
            "models": models,
            "owners": [{"owner": "o", "budget_per_hour": draw(st.sampled_from([None, 7.0]))}],
            "limits": {"max_moves": draw(st.sampled_from([None, 3]))},
        }
    )


@given(crowded())
@settings(max_examples=18, deadline=None)
def test_a_conflict_forbids_and_without_any_one_member_it_does_not(stated):
    found = conflict(stated)
    if found is None:
        assert servable(stated) is True
        return
    limits = limits_of(stated)
    members = [limit for limit in limits if limit.name in names(found)]
    others = [limit for limit in limits if limit not in members]
    assert found.minimal
    assert len(members) == len(found.members)
    assert servable(without(stated, others)) is False
    for member in members:
        assert servable(without(stated, [*others, member])) is True, member
        (told,) = [item for item in found.members if item.name == member.name]
        assert told.alone is servable(without(stated, [member]))


@given(crowded())
@settings(max_examples=10, deadline=None)
def test_there_is_a_conflict_where_no_plan_serves_everything(stated):
    dear = stated.model_copy(
        update={
            "objective": stated.objective.model_copy(update={"unmet_cost": 1e4}),
            "limits": stated.limits.model_copy(update={"gap": 0.0}),
        }
    )
    assert (conflict(stated) is None) == (solve(dear).unmet == ())


def test_where_all_fits_there_is_no_conflict(problem, model):
    assert conflict(problem(model("m", {"a": 100.0}), supply={"a/h": 1.0})) is None


@pytest.mark.parametrize(
    ("fields", "limits", "rules"),
    [
        ({}, {}, {"supply a/h", "supply b/h"}),
        ({"budget_per_hour": 2.5}, {}, {"budget model m"}),
        ({"owner": "poor"}, {}, {"budget owner poor"}),
        ({}, {"max_moves": 2}, {"moves"}),
        ({"tolerance": 5.0}, {}, {"latency model m", "supply a/h"}),
        ({"survive": "region"}, {}, {"supply a/h", "survive model m"}),
        ({"min_replicas": 3, "budget_per_hour": 2.9}, {}, {"budget model m"}),
    ],
)
def test_every_kind_of_limit_is_named(problem, model, fields, limits, rules):
    supply = {"a/h": 1.0, "b/h": 1.0} if rules == {"supply a/h", "supply b/h"} else {"a/h": 2.0, "b/h": 9.0}
    if rules in ({"budget model m"}, {"budget owner poor"}, {"moves"}):
        supply = {"a/h": 9.0, "b/h": 9.0}
    owners = [{"owner": "poor", "budget_per_hour": 2.5}]
    found = conflict(problem(model("m", {"a": 300.0}, **fields), supply=supply, limits=limits, owners=owners))
    assert names(found) == rules


def test_min_replicas_and_survive_are_named_where_they_bind(problem, model):
    stated = problem(
        model("m", {"a": 100.0}, survive="region", min_replicas=2), supply={"a/h": 2.0, "b/h": 1.0}, owners=[]
    )
    found = conflict(stated)
    assert names(found) == {"min_replicas m/p", "survive model m", "supply b/h"}
    assert all(member.alone for member in found.members)
    assert {member.name: (member.limit, member.unit) for member in found.members} == {
        "min_replicas m/p": (2.0, "replicas"),
        "survive model m": (None, ""),
        "supply b/h": (1.0, "units"),
    }


def test_a_cell_without_a_supply_entry_is_a_limit_too(problem, model):
    assert "supply b/h" in names(conflict(problem(model("m", {"a": 300.0}), supply={"a/h": 1.0})))


def test_one_model_conflicts_with_what_the_others_leave(problem, model):
    running = [{"model": "old", "part": "p", "region": "a", "hardware": "h", "count": 3}]
    stated = problem(model("old", {"a": 300.0}), model("new"), supply={"a/h": 3.0}, replicas=running)
    found = conflict(stated, models=["new"])
    assert names(found) == {"supply a/h", "supply b/h"}
    assert (found.models, found.beside) == (("new",), KEPT)
    assert {member.limit for member in found.members} == {0.0}
    assert conflict(stated, models=["old"]) is None
    assert conflict(stated).beside == ALL


def test_one_model_conflicts_with_the_plan_that_is_given(problem, model):
    stated = problem(model("high", {"a": 300.0}, priority=9.0), model("low"), supply={"a/h": 3.0})
    assert conflict(stated, models=["low"]) is None
    assert conflict(stated, models=["low"], state=solve(stated)) is not None


def test_moves_of_the_others_count(problem, model):
    stated = problem(
        model("high", {"a": 300.0}, priority=9.0), model("low"), supply={"a/h": 9.0}, limits={"max_moves": 3}
    )
    (member,) = conflict(stated, models=["low"], state=solve(stated)).members
    assert (member.name, member.limit) == ("moves", 0.0)


def test_an_unknown_model_is_bad_input(problem, model):
    with pytest.raises(InvalidInput, match="known: m"):
        conflict(problem(model("m"), supply={"a/h": 1.0}), models=["ghost"])


def test_too_many_models_are_bad_input(problem, model, monkeypatch):
    monkeypatch.setattr(conflicts, "MOST_COLUMNS", 4)
    stated = problem(model("m"), model("n"), supply={"a/h": 1.0})
    with pytest.raises(InvalidInput, match="2 with 8 placements and routes"):
        conflict(stated)
    assert conflict(stated, models=["m"]) is None


def test_a_solver_that_cannot_tell_is_no_answer(problem, model, monkeypatch):
    stated = problem(model("m", {"a": 300.0}), supply={"a/h": 1.0})
    monkeypatch.setattr(conflicts, "servable", lambda _: None)
    with pytest.raises(DeadlineExceeded, match="in time"):
        conflict(stated)


def test_a_member_that_the_solver_cannot_judge_stays_and_the_set_says_so(problem, model, monkeypatch):
    stated = problem(model("m", {"a": 300.0}, budget_per_hour=9.0), supply={"a/h": 1.0})
    real = conflicts.servable
    monkeypatch.setattr(
        conflicts, "servable", lambda asked: real(asked) if asked.models[0].budget_per_hour is not None else None
    )
    found = conflict(stated)
    assert names(found) == {"budget model m", "supply a/h", "supply b/h"}
    assert not found.minimal


def test_after_some_questions_without_an_answer_no_more_are_asked(problem, model, monkeypatch):
    asked = []

    def vague(stated):
        asked.append(stated)
        return False if len(asked) == 1 else None

    monkeypatch.setattr(conflicts, "servable", vague)
    found = conflict(problem(model("m", {"a": 300.0}), supply={f"a/h{i}": 1.0 for i in range(9)} | {"a/h": 1.0}))
    assert (found.minimal, {member.alone for member in found.members}) == (False, {None})
    assert len(asked) == 1 + conflicts.MOST_UNSURE


def test_without_a_limit_the_rest_of_the_problem_stays(problem, model):
    stated = problem(model("m", survive="region"), model("n", survive="region"), supply={"a/h": 1.0, "b/h": 2.0})
    lifted = without(stated, [Limit("survive model", "m"), Limit("supply", "a/h")])
    assert [m.survive for m in lifted.models] == ["none", "region"]
    assert [(s.region, s.units) for s in lifted.supply] == [("a", 2.0), ("b", 2.0)]
    assert without(stated, []) == stated
