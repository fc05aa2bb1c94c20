import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import CurrentState, Plan, PlanDiff, ReplicaCount, SolverInfo, TrafficShare
from planner.core.diff import apply_diff, diff, replica_of, share_of, state_of

names = st.sampled_from(["a", "b"])


@st.composite
def plans(draw):
    counts = draw(st.dictionaries(st.tuples(names, names, names, names), st.integers(0, 4), max_size=6))
    shares = draw(st.dictionaries(st.tuples(names, names, names), st.sampled_from([0.0, 0.1, 1 / 3, 1.0]), max_size=6))
    return Plan.model_validate(
        {
            "status": "feasible",
            "objective": 1.0,
            "bound": 0.0,
            "gap": 1.0,
            "bound_covers": "",
            "cost_per_hour": float(sum(counts.values())),
            "replicas": [
                {"model": m, "part": p, "region": r, "hardware": h, "count": count}
                for (m, p, r, h), count in counts.items()
            ],
            "traffic": [{"model": m, "from": s, "to": r, "fraction": y} for (m, s, r), y in shares.items()],
            "solver": SolverInfo(method="", seconds=0.0),
        }
    )


@given(plans(), plans())
def test_applying_a_diff_gives_the_later_plan(before, after):
    assert apply_diff(before, diff(before, after)) == state_of(after)
    assert apply_diff(state_of(before), diff(state_of(before), after)) == state_of(after)


@given(plans())
def test_the_same_plan_differs_in_nothing(plan):
    change = diff(plan, plan)
    assert change.empty
    assert change.moves == 0


@given(plans(), plans())
def test_moves_are_the_replicas_started(before, after):
    assert diff(state_of(before), after).cost_per_hour_before == 0.0
    change = diff(before, after)
    assert change.moves == sum(max(0, item.after - item.before) for item in change.replicas)
    assert (change.cost_per_hour_before, change.cost_per_hour_after) == (before.cost_per_hour, after.cost_per_hour)


def test_a_diff_is_refused_on_another_state(problem, model):
    running = [{"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 2}]
    before = problem(model("m"), supply={"a/h": 2.0}, replicas=running).current
    after = Plan.model_construct(replicas=(), traffic=(), cost_per_hour=0.0)
    with pytest.raises(InvalidInput, match="m/p/a/h"):
        apply_diff(CurrentState(), diff(before, after))


@given(plans(), plans())
def test_a_diff_comes_back_from_json_and_lists_only_what_differs_in_order(before, after):
    change = diff(before, after)
    assert PlanDiff.model_validate_json(change.model_dump_json(by_alias=True)) == change
    keys = [(item.model, item.part, item.region, item.hardware) for item in change.replicas]
    assert keys == sorted(set(keys))
    assert all(item.before != item.after for item in (*change.replicas, *change.traffic))


def test_rows_of_a_solvers_figures_are_the_rows_of_the_wire_form():
    row, share = replica_of(("m", "p", "a", "h"), np.int64(3)), share_of(("m", "a", "b"), np.float64(0.5))
    assert row == ReplicaCount(model="m", part="p", region="a", hardware="h", count=3)
    assert type(row.count) is int
    assert share == TrafficShare(model="m", origin="a", to="b", fraction=0.5)
    assert share.model_dump_json(by_alias=True) == '{"model":"m","from":"a","to":"b","fraction":0.5}'
