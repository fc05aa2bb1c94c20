"""Tables of what is read, from plain values."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from ipnext.cli.tables.changes import explanation_tables
from ipnext.cli.tables.models import parts_table, waves_table
from ipnext.cli.tables.regions import regions_table
from ipnext.model.api.resources import HardwareUse, RegionView, StatusExplanation, TransitionView
from ipnext.model.lifecycle.regions.drain import Drain, DrainState, DrainView
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import Transition, TransitionState


def test_parts_are_told_with_their_engines_and_adapters_with_the_name_that_clients_ask_for():
    llm = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, "qps": 1}]}
    spec = {"task": "generation", "demand": [{"region": "eu", "qps": 1}]}
    spec |= {"parts": [llm, {"name": "style", "engine": "vllm", "adapterOf": "llm"}]}
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "a"}, "spec": spec}

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(parts_table(parse_manifest(document)))

    lines = [line.split() for line in console.export_text().splitlines() if line.split()]
    assert lines[-3:] == [
        ["part", "engine", "asked", "as"],
        ["llm", "vllm", "-"],
        ["style", "adapter", "on", "llm", "chat:style"],
    ]


def test_the_waves_of_a_rollout_are_told_with_the_one_that_is_under_way():
    def state(generation):
        return {"traffic": ({"model": "m", "from": "eu", "to": "eu", "generation": generation, "fraction": 1},)}

    half = {"model": "m", "from": "eu", "shares": tuple({"to": "eu", "generation": g, "fraction": 0.5} for g in (1, 2))}
    waves = ({"gate": "canary", "route": (half,), "hold_seconds": 8}, {}, {"gate": "final"})
    transition = Transition.model_validate({"from": state(1), "to": state(2), "waves": waves})
    view = TransitionView(
        id="t",
        model="m",
        change_id="c",
        generation=2,
        transition=transition,
        state=TransitionState.RUNNING,
        waves_done=1,
        message="",
        created_at=datetime.now(UTC),
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(waves_table(view))

    lines = [line.split() for line in console.export_text().splitlines() if line.split()]
    assert lines[-3:] == [
        ["1", "canary", "50%", "8", "s", "done"],
        ["2", "step", "50%", "0", "s", "under", "way"],
        ["3", "final", "50%", "0", "s", "to", "come"],
    ]


def test_a_region_that_was_declared_lost_and_lives_is_told_without_contradiction():
    now = datetime.now(UTC)
    drain = Drain(id="d", region="eu", disaster=True, state=DrainState.DRAINED, created_at=now, updated_at=now)
    lost = DrainView.of(drain, run_url="http://x", replicas_running=2)
    supply = (HardwareUse(hardware="cpu", units=8, used=0, free=8, unit_cost=1),)
    view = RegionView(region="eu", reachable=True, drain=lost, supply=supply, replica_count=2)
    planned = DrainView.of(drain.model_copy(update={"disaster": False}), run_url="http://x", replicas_running=None)
    left = view.model_copy(update={"drain": planned, "replica_count": 0})

    console = Console(width=300, record=True, file=io.StringIO())
    console.print(regions_table([view]))
    shown = console.export_text()
    assert "declared lost, answers still" in shown
    assert "drained" not in shown
    assert (
        "planned: 0 models, 0 replicas, 0 requests or tokens/s; it lives: 2 replicas run on until `ipnext undrain eu`"
        in shown
    )
    console.print(regions_table([left]))
    assert "lost" not in console.export_text()


def test_a_region_that_goes_by_an_old_access_list_says_for_how_long():
    supply = (HardwareUse(hardware="cpu", units=8, used=0, free=8, unit_cost=1),)
    view = RegionView(region="eu", reachable=True, supply=supply, access_behind_seconds=41.6)
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(regions_table([view]))
    assert "yes, old access list for 42 s" in console.export_text()


@pytest.mark.parametrize(
    ("ready", "reason", "line"),
    [
        (True, Reason.SERVING, "solo is ready: Serving: why"),
        (True, Reason.PROGRESSING, "solo is ready: Progressing: why"),
        (True, Reason.REGION_UNREACHABLE, "solo is ready, but one thing is wrong: RegionUnreachable: why"),
        (False, Reason.REGION_UNREACHABLE, "solo is not ready: RegionUnreachable: why"),
    ],
)
def test_an_explanation_of_a_ready_model_does_not_contradict_itself(ready, reason, line):
    explanation = StatusExplanation(model="solo", ready=ready, reason=reason, message="why", advice="", chain=())

    assert next(iter(explanation_tables(explanation))) == f"{line}\n"
