"""The planner benchmark: peers that keep the rules, one formulation for all, rows for what fails."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import vstack

from benchmarks.planner import measuring, side_venvs
from benchmarks.planner.composition import compose
from benchmarks.planner.measuring import Instance, Row, measure
from benchmarks.planner.peers.chunks import Chunks
from benchmarks.planner.peers.greedy import solve_greedily
from benchmarks.planner.peers.partition import parts_of, solve_partition
from benchmarks.planner.peers.program import Program
from benchmarks.planner.report import Report, best_of, rewritten
from ipnext.errors import InvalidInput
from planner.core.arrays import FleetArrays
from planner.generate.generate import generate
from planner.io.problem import validate
from planner.solve import solve
from planner.verify.plan_checker import check

INSTANCE = Instance(section="sweep", models=3, supply_use=0.8, seed=0)
SERVICES = "instance_sn,role,app_name,cpu_request\n" + "".join(
    f"{role}{app}{i},{role},app_{app},{cpus}\n"
    for app in range(12)
    for role, number, cpus in (("CN", 3 * app + 2, 64), ("HN", app + 1, 8))
    for i in range(number)
)
REGIONS = ["Dallas", "Toronto", "WashingtonDC", "Frankfurt", "London", "Madrid", "Osaka", "Sydney", "Tokyo", "SaoPaulo"]
PRICED = {"us-south1": 2.7, "us-east5": 2.7, "us-east4": 2.7, "europe-west4": 2.97}
PRICED |= {"asia-northeast1": 3.24, "asia-southeast1": 2.97}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the forms that the composition reads, much smaller."""
    folder = tmp_path_factory.mktemp("data")
    nodes = (
        [("G2", 8)] * 20 + [("T4", 2)] * 9 + [("P100", 2)] * 4 + [("V100M16", 4), ("V100M32", 8), ("G3", 8), ("", 0)]
    )
    rtt = [[abs(a - b) * 25 for b in range(10)] for a in range(10)]
    files = {
        "ali_gpu-v2025__disaggregated_DLRM_trace.csv": SERVICES,
        "ali_gpu-v2023__openb_node_list_all_node.csv": "sn,gpu,model\n"
        + "".join(f"n,{n},{kind}\n" for kind, n in nodes),
        "ibm_rtt_2024-03-03.csv": f"region,{','.join(REGIONS)}\n"
        + "".join(f"{name},{','.join(map(str, row))}\n" for name, row in zip(REGIONS, rtt, strict=True)),
        "gcp_tpu_v6e_price.csv": "region,ondemand_usd_h\n" + "".join(f"{r},{price}\n" for r, price in PRICED.items()),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


DEEP = pytest.mark.deep
"""Of tests that compile the kernel of the greedy, once for each checkout: 20 s."""


@DEEP
@pytest.mark.parametrize("supply_use", [0.6, 0.9, 1.2])
def test_the_greedy_keeps_every_rule_however_tight_the_supply(supply_use):
    problem = generate(models=120, regions=8, supply_use=supply_use, seed=3)
    assert check(problem, solve_greedily(problem).plan("greedy")) == ()


@DEEP
def test_the_greedy_serves_everything_where_supply_is_ample_near_the_cost_of_the_reference():
    problem = generate(models=120, supply_use=0.3, seed=3, current=True)
    units = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
    price = {(s.region, s.hardware): s.unit_cost for s in problem.supply}
    reference = sum(
        r.count * units[r.model, r.part, r.hardware] * price[r.region, r.hardware] for r in problem.current.replicas
    )
    plan = solve_greedily(problem).plan("greedy")
    assert not plan.unmet
    assert plan.cost_per_hour < reference


@DEEP
def test_the_greedy_finds_the_best_plan_of_one_model():
    for seed in range(4):
        problem = generate(models=1, regions=4, hardware=3, supply_use=0.5, seed=seed)
        exact = problem.model_copy(update={"limits": problem.limits.model_copy(update={"gap": 1e-6})})
        assert solve_greedily(problem).plan("greedy").objective <= solve(exact, method="reference").objective * 1.02


@pytest.mark.parametrize("seed", range(3))
def test_the_program_says_what_the_reference_says(seed):
    problem = generate(models=4, regions=3, hardware=2, supply_use=0.95, seed=seed)
    program = Program(FleetArrays.of(problem))
    blocks = list(program.blocks())
    rows = LinearConstraint(
        vstack([block.matrix for block in blocks]),
        np.concatenate([block.low for block in blocks]),
        np.concatenate([block.high for block in blocks]),
    )
    found = milp(program.cost, constraints=rows, bounds=Bounds(0, program.upper), integrality=program.integer)
    exact = problem.model_copy(update={"limits": problem.limits.model_copy(update={"gap": 1e-6})})
    assert found.fun == pytest.approx(solve(exact, method="reference").objective, rel=1e-3)


def test_the_parts_of_a_partition_add_up_to_the_limits_and_the_demand():
    problem = generate(models=60, seed=1)
    groups = parts_of(problem, 3, seed=0)
    for whole, *parts in zip(problem.supply, *(group.supply for group in groups), strict=True):
        assert sum(part.units for part in parts) == pytest.approx(whole.units)
    for whole, *parts in zip(problem.owners, *(group.owners for group in groups), strict=True):
        if whole.budget_per_hour is not None:
            assert sum(part.budget_per_hour for part in parts) == pytest.approx(whole.budget_per_hour)
    qps = dict.fromkeys((model.model for model in problem.models), 0.0)
    for group in groups:
        for model in group.models:
            qps[model.model] += sum(demand.qps for demand in model.demand)
    assert list(qps.values()) == pytest.approx([sum(d.qps for d in m.demand) for m in problem.models])


def test_the_union_of_a_partition_keeps_every_rule():
    problem = generate(models=10, regions=3, hardware=2, supply_use=0.7, seed=1)
    problem = problem.model_copy(update={"limits": problem.limits.model_copy(update={"time_seconds": 1.0})})
    assert check(problem, solve_partition(problem, "reference").plan("partition")) == ()


def test_chunks_hold_all_demand_and_become_whole_replicas_within_the_supply():
    problem = generate(models=20, seed=2)
    chunks = Chunks(problem)
    document = chunks.document()
    qps = dict.fromkeys(range(20), 0.0)
    for chunk in document["chunks"]:
        qps[int(chunk["model"])] += 0.0 if "standby" in chunk["name"] else chunk["qps"]
    assert list(qps.values()) == pytest.approx([sum(d.qps for d in m.demand) for m in problem.models])
    fleet = FleetArrays.of(problem)
    used = np.zeros_like(fleet.supply)
    for m, counts in chunks.counts(document["start"]).items():
        options = slice(fleet.option_start[fleet.part_start[m]], fleet.option_start[fleet.part_start[m + 1]])
        np.add.at(used.T, fleet.option_hardware[options], counts * fleet.option_units[options, None])
    assert used.sum() > 0
    assert (used <= fleet.supply + 1e-9).all()


def test_the_composition_is_valid_and_keeps_the_real_ratio_of_the_parts(data: Path):
    problem = compose(data, supply_use=0.8)
    validate(problem)
    assert problem == compose(data, supply_use=0.8)
    assert len(problem.models) == 12
    for app, model in enumerate(problem.models):
        total = sum(demand.qps for demand in model.demand)
        cn, hn = model.parts
        assert total / cn.options[0].qps == pytest.approx(3 * app + 2, rel=2e-3)
        assert cn.options[0].units == 64
        assert "G2" in {option.hardware for option in hn.options}


def test_tighter_use_composes_less_supply(data: Path):
    loose, tight = (sum(item.units for item in compose(data, supply_use=use).supply) for use in (0.5, 1.0))
    assert tight == pytest.approx(loose / 2, rel=0.05)


def test_a_missing_file_of_the_composition_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"disaggregated_DLRM_trace\.csv is missing"):
        compose(tmp_path)


def test_a_peer_whose_environment_is_missing_is_a_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(side_venvs, "FOLDER", Path("nowhere"))
    monkeypatch.setattr(measuring, "ROOT", side_venvs.ROOT)
    with pytest.raises(FileNotFoundError, match="--with ortools"):
        side_venvs.python_of("ortools")


@pytest.mark.parametrize(
    ("program", "seconds", "memory_gb", "status"),
    [
        ("import sys; sys.exit('it broke')", 180, 8, "failed"),
        ("import time; time.sleep(600)", 0.5, 8, "time"),
        ("x = bytearray(300_000_000); import time; time.sleep(600)", 180, 0.1, "memory"),
    ],
)
@pytest.mark.usefixtures("subprocesses")
def test_what_happens_to_a_peer_is_a_status(tmp_path: Path, monkeypatch, program, seconds, memory_gb, status):
    import sys  # noqa: PLC0415

    monkeypatch.setattr(measuring, "SET_UP_SECONDS", seconds)
    found = measuring._watched([sys.executable, "-c", program], tmp_path / "answer.json", seconds, memory_gb)
    assert found["status"] == status
    assert found["note"]


@pytest.mark.usefixtures("subprocesses")
@DEEP
def test_a_measured_row_is_judged_by_the_checker():
    problem = generate(models=3, regions=3, hardware=2, supply_use=0.8)
    row = measure(INSTANCE, problem, "greedy", seconds=180, memory_gb=8)
    assert (row.status, row.valid, row.broken) == ("done", True, ())
    assert row.objective == pytest.approx(solve_greedily(problem).plan("greedy").objective)
    assert row.peak_mb > 50
    assert row.cpu_seconds >= 0


def test_a_report_keeps_the_latest_row_of_each_peer_and_fills_the_page():
    report = Report(machine="m")
    for peer, objective in (("greedy", 3.0), ("ours", 2.0), ("greedy", 2.5)):
        report = report.added(Row(instance=INSTANCE, peer=peer, status="done", objective=objective, valid=True))
    assert [(row.peer, row.objective) for row in report.rows] == [("ours", 2.0), ("greedy", 2.5)]
    assert best_of(report.rows) == 2.0
    page = "a <!-- measured: sweep -->old<!-- end --> b <!-- measured: growth -->kept<!-- end --> c"
    written = rewritten(page, report)
    assert "25.00%" in written
    assert "old" not in written
    assert "<!-- measured: growth -->kept<!-- end --> c" in written
    assert rewritten(written, report) == written


def test_the_page_has_a_block_for_every_section():
    page = (side_venvs.ROOT / "docs" / "planner-benchmarks.md").read_text(encoding="utf-8")
    for section in ("sweep", "composition", "growth"):
        _, rest = page.split(f"<!-- measured: {section} -->")
        assert "<!-- end -->" in rest
