"""Adds a wave's capacity: wait for draining replicas, apply the replica sets, wait until the generation is ready."""

from collections.abc import Collection, Iterable, Sequence

from activities.runtime.deadline import POLL_SECONDS, Deadline
from activities.runtime.fence import still_ours
from activities.state.failure_cause import first_lacking
from activities.state.observed import Failure, first_failure, missing_replicas, observe
from activities.state.shadow_sets import add_shadow
from activities.state.wave_state import ModelWaveState
from activities.transition.hot_swap import Announcement
from activities.transition.scale_down import EarlyRelease
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.lifecycle.changes.transition_run import WaveInput, WaveResult
from ipnext.model.lifecycle.failure_cause import Place
from ipnext.model.lifecycle.shadow import ModelShadow
from ipnext.model.lifecycle.status import Reason


class Capacity:
    """Capacity of a wave. All waits together end with the wave's deadline, and within the time of one poll.

    The processes of `shadow` are applied with it, and not waited for.
    """

    def __init__(self, infrastructure: Infrastructure, deadline: Deadline, shadow: ModelShadow | None = None) -> None:
        self._infrastructure = infrastructure
        self._deadline = deadline
        self._shadow = shadow

    def until_drained(self, told: Sequence[Deployment]) -> WaveResult | None:
        """Wait for replicas that still stream their last answers.

        Until they end they occupy the units of the next ones. If they still do after a short wait, the result makes the
        workflow call again.
        """
        keys = {deployment.key for deployment in told if deployment.drain_seconds is not None}
        while keys and not self._deadline.is_over:
            states, _ = observe(self._infrastructure, {key.region for key in keys}, sorted({key.model for key in keys}))
            replicas = [replica for state in states.values() for replica in state.replicas]
            left = [r.id for r in replicas if r.key in keys and r.phase is ReplicaPhase.DRAINING]
            if not left:
                return None
            words = f"{', '.join(left)} streams its last answers"
            if self._deadline.is_poll_over:
                return self._again(words)
            self._deadline.wait(words)
        return None

    def until_ready(
        self,
        wave: WaveInput,
        needed: ModelWaveState,
        wanted: Sequence[Deployment],
        *,
        announce: Announcement | None = None,
        if_reachable: Collection[str] = (),
        early: EarlyRelease | None = None,
    ) -> WaveResult:
        """Wait for the replicas of `needed`: in a revert only the origin's, because the others may never become ready.

        Regions of `if_reachable` are waited for only while they answer. A region of `early` that was away releases what
        it has to before it gets anything. The wait is short: if the result has `again_seconds`, the workflow calls
        again.
        """
        pending = [found for found in wanted if early is None or found not in early.fewer]
        while True:
            if announce is not None:
                announce.make()
            held = early.attempt() if early is not None else ()
            pending = self._apply(pending, held)
            states, silent = observe(self._infrastructure, {d.key.region for d in wanted}, [wave.model])
            spared = set(silent).intersection(if_reachable)
            lacking = missing_replicas(wave.model, needed.outside(spared), states)
            left = pending if early is None else [*pending, *early.fewer]
            untold = [found for found in left if found.key.region not in spared]
            failure = None if wave.back else first_failure(wave.model, wave.generation, states.values())
            if failure is None and not lacking and not untold:
                return WaveResult(ok=True, message=f"{sum(d.replicas for d in wanted)} replicas ready")
            if failure is None and self._deadline.is_over:
                failure = _too_late(wave, lacking, silent, first_lacking(wave.model, needed, states))
            if failure is not None:
                return WaveResult(ok=False, reason=failure.reason, message=failure.message, place=failure.place)
            words = "; ".join(lacking) or f"regions {', '.join(silent)} can't be reached"
            if self._deadline.is_poll_over:
                return self._again(words)
            self._wait(words, wave.model, states.get(first_lacking(wave.model, needed, states).region or ""))

    def _again(self, words: str) -> WaveResult:
        return WaveResult(
            ok=False, message=words, again_seconds=POLL_SECONDS, waited_seconds=self._deadline.waited_seconds
        )

    def _wait(self, words: str, model: str, region: RegionState | None) -> None:
        """Wait until the region with missing replicas changes; others that miss some are observed after it."""
        if region is None or not region.token:
            self._deadline.wait(words)
            return
        change = self._infrastructure.await_change
        self._deadline.wait_for(words, lambda s: change(region.region, [model], region.token, seconds=s))

    def _apply(self, deployments: Iterable[Deployment], held: Collection[str]) -> list[Deployment]:
        """Apply the deployments; return those whose region is unreachable or `held`. A silent region is called once."""
        untold: list[Deployment] = []
        silent = set(held)
        for deployment in deployments:
            if deployment.key.region in silent:
                untold.append(deployment)
                continue
            still_ours()
            try:
                self._infrastructure.apply(add_shadow(deployment, self._shadow))
            except Unavailable:
                silent.add(deployment.key.region)
                untold.append(deployment)
        return untold


def _too_late(wave: WaveInput, lacking: Sequence[str], silent: Sequence[str], first: Place) -> Failure:
    if silent:
        message = f"regions {', '.join(silent)} could not be reached in time"
        return Failure(Reason.REGION_UNREACHABLE, message, Place(region=silent[0]))
    seconds = f"{wave.deadline_seconds:g} s"
    return Failure(Reason.DEADLINE_EXCEEDED, f"not ready within {seconds}: {'; '.join(lacking)}", first)
