"""Seeded histories of the pure decision code hold every invariant, and are the same whenever they are run again."""

import base64
import json
import os
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from ipnext.model.lifecycle.changes.transition_run import WaveResult
from ipnext.model.wire import decode
from tests.tiers import scaled
from tests.workflows.simulation.__main__ import main
from tests.workflows.simulation.campaign import run_campaign
from tests.workflows.simulation.infrastructure import Region
from tests.workflows.simulation.invariants.invariants import Invariants
from tests.workflows.simulation.runs import lifecycle
from tests.workflows.simulation.runs.activity_attempts import Limits
from tests.workflows.simulation.transitions.walk import Way, walk
from tests.workflows.simulation.world import history

HISTORIES = Path(__file__).parent / "builds" / "histories"
EVERY_DAY = 150
"""Histories of each `make test-all`; `make test` runs a tenth."""
WITH_PARTS = 90
"""Those whose manifests add and remove parts besides; docs/simulation.md has the seeds that still break something."""
ALL = 100_000
OTHER_HASHES = "1"
"""The seed of another process's hashes; those of this one are drawn."""
FAULTS = (
    "a model is withdrawn", "a region is told again", "a repair is recorded", "a transition is taken over",
    "an activity outlives its run", "an entity is begun again", "entity continues as new", "history limit",
    "region away beyond the deadline", "terminate all of a model", "terminate drain", "terminate entity",
    "terminate lifecycle", "terminate lifecycle and transition", "terminate reconcile", "terminate replan",
    "terminate transition", "a way back by waves", "approved", "bad answers", "dips", "goes over", "host crashed",
    "host crashed while it goes over", "invalid", "load failure", "never ready", "region dead", "region lost",
    "region unreachable", "stopped by a newer change", "a repair goes by what serves, not by what waits",
    "swap fails", "turned for a newer publish", "unacknowledged", "waits for supply", "worker killed",
)  # fmt: skip
MINDS = (
    "abort", "apply", "drain", "freeze", "lose a region", "pause", "publish", "publish in a rush", "replan", "retire",
    "repair", "rollback", "two owners at once",
)  # fmt: skip
MANIFESTS = ("adds a part", "refused", "removes a part", "too large", "usual")
PARTS = (
    "a replan places those of two generations", "apply of one that the manifest lost", "one has no snapshot",
    "publish to fewer ones", "publish to other ones", "refused for one that the manifest lost",
    "rollback of one that the manifest lost",
)  # fmt: skip


def describe(broken) -> str:
    return "\n".join(f"--seed {found.seed}: {found.violated}: {found.told}" for found in broken[:5])


@pytest.fixture(scope="module")
def daily():
    total, broken = run_campaign(range(scaled(EVERY_DAY)), 1)
    with_parts, more = run_campaign(range(scaled(WITH_PARTS)), 1, parts=True)
    return total + with_parts, broken + more


def test_every_history_holds_every_invariant(daily):
    _, broken = daily

    assert not broken, describe(broken)


@pytest.mark.deep
def test_the_histories_have_every_fault_and_every_mind(daily):
    total, _ = daily

    assert [kind for kind in FAULTS if not total[f"fault: {kind}"]] == []
    assert [kind for kind in MINDS if not total[f"mind: {kind}"]] == []
    assert [kind for kind in MANIFESTS if not total[f"manifest: {kind}"]] == []
    assert [kind for kind in PARTS if not total[f"parts: {kind}"]] == []


@pytest.mark.nemesis
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_histories_hold_every_invariant():
    _, broken = run_campaign(range(ALL), 2)

    assert not broken, describe(broken)


def test_workers_that_stood_still_and_wake_up_late_break_nothing():
    found = [history(seed, stalls=True) for seed in range(scaled(80))]

    assert [outcome for outcome in found if outcome.violated] == []
    assert sum(outcome.counted["fault: stalled worker"] for outcome in found)


def test_what_is_remembered_of_looks_and_hosts_changes_no_history(monkeypatch):
    """Looked at anew after every step, and hosts counted one by one, the same is found and counted."""
    seeds = range(scaled(20))
    quick = [history(seed, tracing=True) for seed in seeds]
    anew = []
    monkeypatch.setattr(Region, "able", lambda region, model, now: region.count_able(model, now).qps)
    monkeypatch.setattr(Invariants, "_observe", lambda *_: anew.append(None) or object())

    assert [history(seed, tracing=True) for seed in seeds] == quick
    assert len(anew) == sum(found.looks for found in quick) > 0


def test_a_worker_dies_between_the_stages_of_one_attempt_and_the_next_one_goes_through_them_again():
    """In histories in which they are one activity."""
    traces = [history(seed, tracing=True, prepares=True).trace for seed in range(40)]

    assert any(begun_again(trace) for trace in traces)


def begun_again(trace) -> bool:
    """Whether an attempt that was ended after some of its stages is followed by another one of the same change."""
    told = [line.split(maxsplit=2) for line in trace]
    for index, (_, kind, text) in enumerate(told):
        if kind != "activity" or not text.endswith("prepare_change"):
            continue
        model = text.split()[1].split("-")[0]
        after = [other for _, how, other in told[index + 1 :] if how in {"activity", "step"} and model in other]
        stages = list(takewhile(lambda line: " prepare_change" not in line, after))
        of_it = all(line.startswith(f"{model}: ") for line in stages)
        if stages and of_it and stages[-1] != f"{model}: the waves are written down" and text in after[len(stages) :]:
            return True
    return False


def test_stages_that_no_attempt_has_gone_through_are_gone_through_one_by_one(monkeypatch):
    monkeypatch.setattr(lifecycle, "IN_ONE", Limits(tries=1))

    found = [history(seed, prepares=True) for seed in range(40)]

    assert [outcome for outcome in found if outcome.violated] == []
    assert sum(outcome.counted["fault: stages are gone through one by one"] for outcome in found)


@pytest.mark.usefixtures("subprocesses")
def test_a_seed_gives_the_same_history_in_any_process():
    script = (
        "from tests.workflows.simulation.world import history\n"
        "print('|'.join('|'.join(history(seed, tracing=True).trace) for seed in range(12)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": OTHER_HASHES},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert os.environ.get("PYTHONHASHSEED") != OTHER_HASHES
    assert other == "|".join("|".join(history(seed, tracing=True).trace) for seed in range(12)) + "\n"


def test_one_seed_is_told_step_by_step(capsys):
    assert main(["--seed", "7", "--trace"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert any("ensure_capacity" in line for line in lines)
    assert lines[-1] == "seed 7: all held "


@pytest.mark.parametrize("name", ["transition-done", "transition-back"])
def test_the_walk_asks_for_what_the_recorded_workflow_asked_for(name):
    """Fed with the recorded answers, it gives the recorded order of activities and timers."""
    recorded = json.loads((HISTORIES / f"{name}.json").read_text())
    asked, answers = commands_and_answers(recorded["events"])
    started = recorded["events"][0]["workflowExecutionStartedEventAttributes"]
    waves = payload(started["input"])["waves"]

    assert list_commands(waves, answers) == asked


def list_commands(waves: int, answers: list) -> list[str]:
    """The names of a walk's commands when these are its answers."""
    way, names, left = walk(Way(waves)), [], list(answers)
    command = next(way)
    while True:
        names.append(command.name)
        answer = None if command.name == "timer" else left.pop(0)
        try:
            command = way.send(answer)
        except StopIteration:
            return names


def commands_and_answers(events: list) -> tuple[list[str], list[WaveResult]]:
    asked, answers = [], []
    for event in events:
        if found := event.get("activityTaskScheduledEventAttributes"):
            asked.append(found["activityType"]["name"])
        elif "timerStartedEventAttributes" in event:
            asked.append("timer")
        elif found := event.get("activityTaskCompletedEventAttributes"):
            answers.append(decode(WaveResult, json.dumps(payload(found["result"]))))
    return asked, answers


def payload(found: dict) -> dict:
    return json.loads(base64.b64decode(found["payloads"][0]["data"]))
