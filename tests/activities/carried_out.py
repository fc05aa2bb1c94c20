"""Changes of one model, carried out by the activities themselves, without workflows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.planning.activities import PlanningActivities
from activities.planning.policy import PlanningPolicy
from activities.planning.replan import FleetReplan
from activities.planning.solver import ThreadSolver
from activities.transition.activities import TransitionActivities
from activities.validation.activities import ValidationActivities
from ipnext.errors import IPnextError
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, PlanningResult, RecordInput, StageInput
from ipnext.model.lifecycle.changes.transition_run import TransitionPlanned, WaveInput
from ipnext.model.lifecycle.replans.replan import ReplanComputed
from ipnext.model.lifecycle.status import Reason
from ipnext.store.operations.change_end import ROLLS_OUT

LOOKS = 12
"""Attempts at one step of a wave."""


@dataclass
class CarriedOut:
    """Carries changes of `model` out, step by step."""

    house: Any
    model: str = "ranker"
    env: ActivityEnvironment = field(default_factory=ActivityEnvironment)

    def __post_init__(self) -> None:
        store, infrastructure = self.house.store, self.house.infrastructure
        self.validation = ValidationActivities(store, self.house.artifacts)
        self.planning = PlanningActivities(store, ThreadSolver(), PlanningPolicy())
        self.transition = TransitionActivities(store, infrastructure, pause=lambda _: None)
        self.deployment = DeploymentActivities(store, infrastructure)

    def stage(self, change: Change, generation: int) -> StageInput:
        return StageInput(
            model=self.model, change_id=change.id, kind=change.kind, generation=generation, plan_id=change.plan_id
        )

    def placed(self, change: Change, generation: int) -> PlanningResult:
        """Validate a rollout, and place the model."""
        stage = self.stage(change, generation)
        if change.kind in ROLLS_OUT:
            assert self.env.run(self.validation.validate_generation, stage).refusal is None
        planned: PlanningResult = self.env.run(self.planning.place_model, stage)
        return planned

    def planned(self, change: Change, generation: int) -> TransitionPlanned:
        found: TransitionPlanned = self.env.run(self.transition.plan_transition, self.stage(change, generation))
        return found

    def walk(self, change: Change, generation: int, waves: Iterable[int], **more: Any) -> str:
        """Execute waves; return the first message of a step that failed."""
        names = ("ensure_capacity", "shift_traffic", "check_gate", "release_capacity")
        for index in waves:
            wave = WaveInput(
                transition_id=change.id,
                model=self.model,
                generation=generation,
                index=index,
                deadline_seconds=20,
                **more,
            )
            for name in names:
                if name == "check_gate" and wave.back:
                    continue
                told = self.step(name, wave)
                if told:
                    return f"{name}: {told}"
        return ""

    def step(self, name: str, wave: WaveInput) -> str:
        """Take one step of a wave until it has ended; return why it failed."""
        told = ""
        for _ in range(LOOKS):
            try:
                result = self.env.run(getattr(self.transition, name), wave)
            except IPnextError as error:
                told = error.message
                continue
            if result.ok or not result.again_seconds:
                return "" if result.ok else result.message
            told = result.message
        return told

    def end(
        self,
        change: Change,
        generation: int,
        state: ChangeState,
        reason: Reason = Reason.SUCCEEDED,
        message: str = "told",
    ) -> None:
        result = LifecycleResult(state=state, generation=generation, reason=reason, message=message)
        with self.house.store.read() as unit:
            revision = unit.model(self.model).generation
        record = RecordInput(
            model=self.model,
            change_id=change.id,
            kind=change.kind,
            generation=generation,
            result=result,
            run_id="",
            revision=revision,
        )
        self.env.run(self.deployment.finish_change, record)

    def carry_out(self, change: Change, generation: int) -> None:
        """Carry a rollout or a rollback out to its end."""
        assert self.placed(change, generation).feasible
        self.move(change, generation)

    def move(self, change: Change, generation: int) -> None:
        """Carry a placed change out to its end."""
        planned = self.planned(change, generation)
        assert planned.refused is None, planned.refused
        assert not self.walk(change, generation, range(planned.waves))
        self.end(change, generation, ChangeState.DONE)

    def replan(self, number: int = 1) -> ReplanComputed:
        """Plan the whole fleet again."""
        self.house.ask_replan(f"replan-{number}")
        fleet = FleetReplan(self.house.store, ThreadSolver(), PlanningPolicy(), say=lambda _: None)
        return fleet.compute(f"plan-{number}", run_id="run")
