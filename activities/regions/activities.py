"""Activities of a drain besides its check: its progress, failover from a lost region, and the restoration of a region.

Each reads the drain from the store and may be run any number of times.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from temporalio import activity

from activities.planning.drift import record_repair
from activities.planning.move_window import SUBMITS, Submit
from activities.planning.replan_activities import Wake
from activities.regions.failover import RegionFailover
from activities.regions.recovery import RegionRecovery
from activities.runtime.deadline import beat
from activities.runtime.single_calls import OF_ONE, SingleCalls, describe, name_failed, read_each
from activities.state.drained_fleet import leaves_loss
from ipnext import names
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.regions.drain import Drain, DrainInput, DrainSeen, DrainState, describe_held, status_of
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import Reason
from ipnext.store.operations.change_end import judge_again
from ipnext.store.repository import Repository
from ipnext.store.store import Store

FIRST_REPLAN_AGAIN = timedelta(seconds=5)
"""If a drain's replan has ended and left something, the drain requests another one after this long, then twice as long,
..."""

LAST_REPLAN_AGAIN = timedelta(minutes=5)
"""... and at most after this."""

MOVING_AWAY = "models move away"

LEFT_THE_FLEET = "the region has left the fleet"

LOST_AND_EMPTY = "nothing is planned there, and no other region sends users there"
"""Of a region that is declared lost. Whether its replicas have ended is not known: it is not called."""


class DrainActivities:
    """Drain activities, on the store, the infrastructure, and a function that wakes the replan workflow."""

    def __init__(self, store: Store, infrastructure: Infrastructure, wake: Wake, submit: Submit) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._wake = wake
        self._submit = submit

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.look_at_drain, self.route_around, self.return_region)

    @activity.defn(name="look_at_drain", no_thread_cancel_exception=True)
    def look_at_drain(self, asked: DrainInput) -> DrainSeen:
        """Report the state of the drain, and the replicas and traffic left there.

        If nothing is left, the region is drained. If its replan has ended and left something, another one is requested.
        """
        with self._store.read() as repository:
            drain = repository.drain(asked.region)
            if drain is None:
                return DrainSeen(state=DrainState.RETURNED, known=False)
            seen = count_remaining(repository, drain)
            differs = drain.state is DrainState.DRAINING and _differs(repository, drain, seen)
        if differs:
            drain = self._write_advance(drain, seen)
        self._wake_replan(drain)
        return seen.model_copy(update={"state": drain.state, "message": drain.message})

    @activity.defn(name="route_around", no_thread_cancel_exception=True)
    def route_around(self, asked: DrainInput) -> DrainSeen:
        """Fail the traffic of a lost region over to the remaining ones, for all models at once; then request a replan.

        Moves away from the region that wait are submitted again: what they wait for does not bind them any more.
        """
        with self._store.read() as repository:
            drain = repository.drain(asked.region)
        if drain is None or not drain.lost or drain.state is DrainState.RETURNING:
            return self.look_at_drain(asked)
        result = RegionFailover(self._store, self._infrastructure).send_around(asked.region)
        with self._store.begin() as repository:
            drain = repository.drain(asked.region) or drain
            if drain.state in {DrainState.RECORDED, DrainState.CHECKING}:
                drain = repository.update_drain(
                    drain.id, state=DrainState.DRAINING, cause=Reason.PROGRESSING, message=result.message
                )
                repository.add_event(None, "Drain", f"region {drain.region} is declared lost: {result.message}")
                drain = ask_replan(repository, drain)
            elif message := result.message if result.tables else result.remaining_work:
                repository.update_drain(drain.id, message=message)
        self._wake_replan(drain)
        self._submit_moves(drain)
        return self.look_at_drain(asked)

    @activity.defn(name="return_region", no_thread_cancel_exception=True)
    def return_region(self, asked: DrainInput) -> DrainSeen:
        """Apply the desired state to a region that was lost; then its supply counts again and a replan is requested.

        Nothing moves before that plan. A region that fails stays out, and is tried again. What changes store meanwhile
        is applied as well, before the region counts again or right after; a model that fails is left to the reconciler.
        The return of a region that has left the fleet ends at once.
        """
        with self._store.read() as repository:
            drain = repository.drain(asked.region)
            has_left = drain is not None and _has_left(repository, drain)
        if drain is None or drain.state is not DrainState.RETURNING:
            return self.look_at_drain(asked)
        if has_left:
            return _summarize_drain(self._end_left(drain))
        recovered: RegionRecovery | None = None
        if drain.disaster:
            try:
                recovered = RegionRecovery(self._store, self._infrastructure, asked.region, beat=beat)
                recovered.reconcile()
            except OF_ONE as error:
                return _summarize_drain(self._note_away(drain, error))
        drain = self._count_again(drain, recovered.failed if recovered else {})
        if drain.state is DrainState.RETURNED and recovered is not None:
            repairs, found = SingleCalls(), frozenset(recovered.suspects)
            self._repair_models(found, repairs)
            with suppress(*OF_ONE):  # the reconciler goes on
                recovered.catch_up()
            self._repair_models(recovered.suspects - found, repairs)
            drain = self._note_unrepaired(drain, repairs.failed)
        self._wake_replan(drain)
        return _summarize_drain(drain)

    def _end_left(self, read: Drain) -> Drain:
        """End the return of a region that the fleet no longer has: no supply is left to count again."""
        with self._store.begin() as repository:
            drain = repository.drain(read.region) or read
            if drain.state is not DrainState.RETURNING or not _has_left(repository, drain):
                return drain
            repository.add_event(None, "Drain", f"the drain of {drain.region} is over: {LEFT_THE_FLEET}")
            return repository.update_drain(
                drain.id, state=DrainState.RETURNED, cause=Reason.SUCCEEDED, message=LEFT_THE_FLEET
            )

    def _submit_moves(self, drain: Drain) -> None:
        """Submit waiting moves away from lost regions again, once for each replan of the drain.

        One that fails waits on as before.
        """
        with self._store.read() as repository:
            moves = [change for change in repository.open_moves() if _leaves_loss(repository, change)]
        beat(f"{len(moves)} moves need not wait")

        def one(change: Change) -> None:
            with suppress(*OF_ONE):
                self._submit(change, drain.replan_id or drain.id)

        with ThreadPoolExecutor(SUBMITS, thread_name_prefix="move-at-once") as pool:
            list(pool.map(one, moves))

    def _note_away(self, drain: Drain, error: Exception) -> Drain:
        cause = Reason.REGION_UNREACHABLE if isinstance(error, Unavailable) else Reason.INTERNAL_ERROR
        with self._store.begin() as repository:
            return repository.update_drain(drain.id, cause=cause, message=f"asked back, but {describe(error)}")

    def _count_again(self, read: Drain, failed: Mapping[str, str]) -> Drain:
        """Record that the region is in service again, and ask for a replan.

        Nothing is recorded if something else was requested meanwhile.
        """
        with self._store.begin() as repository:
            drain = repository.drain(read.region) or read
            if drain.state is not DrainState.RETURNING:
                return drain
            told = f"; {_describe_failures(failed)}" if failed else ""
            drain = repository.update_drain(
                drain.id, state=DrainState.RETURNED, cause=Reason.SUCCEEDED, message=f"its supply counts again{told}"
            )
            repository.add_event(None, "Drain", f"region {drain.region} is back{told}")
            return ask_replan(repository, drain) if repository.plan_in_force_id() is not None else drain

    def _repair_models(self, suspects: Collection[str], calls: SingleCalls) -> None:
        """Record repairs of models that could not be repaired while the region was lost.

        Their changes ended meanwhile.
        """
        for model in sorted(suspects):
            beat(f"{model} drifted")
            calls.run(model, partial(self._repair, model))

    def _repair(self, model: str) -> None:
        with self._store.begin(model) as repository:
            record_repair(repository, model)
            judge_again(repository, model)

    def _note_unrepaired(self, drain: Drain, failed: Mapping[str, str]) -> Drain:
        """Name the models whose repair could not be recorded: the reconciler records it."""
        if not failed:
            return drain
        message = f"{drain.message}; not repaired yet: {name_failed(failed)}"
        with self._store.begin() as repository:
            return repository.update_drain(drain.id, message=message)

    def _write_advance(self, read: Drain, seen: DrainSeen) -> Drain:
        """Record the progress that was found.

        If the drain has changed since, it stays as it is: the next check continues from there. The end of the drain is
        recorded only if nothing has come to the region since.
        """
        with self._store.begin() as repository:
            drain = repository.drain(read.region)
            if drain is None or drain != read:
                return drain or read
            if _is_empty(seen) and not _is_empty(count_remaining(repository, drain)):
                return drain
            return self._record_progress(repository, drain, seen)

    def _record_progress(self, repository: Repository, drain: Drain, seen: DrainSeen) -> Drain:
        """Record the rest; the end of the drain, or the next replan if one is due."""
        left = {
            "models_left": seen.models_left,
            "replicas_left": seen.replicas_left,
            "traffic_left_qps": seen.traffic_left_qps,
        }
        if _is_empty(seen):
            message = LOST_AND_EMPTY if drain.disaster else "nothing runs there and nothing is sent there"
            status = status_of(DrainState.DRAINED, lost=drain.disaster)
            repository.add_event(None, "Drain", f"region {drain.region} is {status}: {message}")
            return repository.update_drain(
                drain.id, state=DrainState.DRAINED, cause=Reason.SUCCEEDED, message=message, **left
            )
        drain = repository.update_drain(drain.id, message=_describe_drain(repository, drain), **left)
        return ask_replan(repository, drain) if _due(repository, drain) else drain

    def _wake_replan(self, drain: Drain) -> None:
        """Wake the replan workflow if it does not know the drain's replan yet."""
        if drain.replan_id is None:
            return
        with self._store.read() as repository:
            waits = repository.replan(drain.replan_id).state is ReplanState.RECORDED
        if waits:
            self._wake()
            with self._store.begin() as repository:
                repository.queue_replans([drain.replan_id])


def ask_replan(repository: Repository, drain: Drain) -> Drain:
    """Record the next replan of a drain."""
    replan = repository.add_replan(names.drain_replan_id(drain.id, drain.replans + 1), "drain")
    return repository.update_drain(drain.id, replan_id=replan.id, replans=drain.replans + 1)


def count_remaining(repository: Repository, drain: Drain) -> DrainSeen:
    """Count what still runs in the region, is planned there or is sent there; demand that can't be read counts as 0."""
    models, replicas = repository.find_remaining(drain.region)
    shares = repository.shares_to(drain.region)
    sending = {model for model, _, _ in shares}
    demands = dict(read_each(lambda some: tuple(repository.demands(some).items()), sorted(sending))[0])
    qps = sum(fraction * demands.get(model, {}).get(origin, 0.0) for model, origin, fraction in shares)
    return DrainSeen(
        state=drain.state,
        disaster=drain.disaster,
        message=drain.message,
        models_left=len(models | sending),
        replicas_left=replicas,
        traffic_left_qps=round(qps, 6),
        misrouted=len(shares),
    )


def _has_left(repository: Repository, drain: Drain) -> bool:
    """Return whether the fleet no longer has the drain's region, and no model uses it."""
    return drain.region not in repository.fleet().spec.regions and not repository.find_models_in(drain.region)


def _is_empty(seen: DrainSeen) -> bool:
    return not seen.models_left and not seen.misrouted


def _differs(repository: Repository, drain: Drain, seen: DrainSeen) -> bool:
    """Check whether there is progress of a draining region to record."""
    written = (drain.models_left, drain.replicas_left, drain.traffic_left_qps)
    found = (seen.models_left, seen.replicas_left, seen.traffic_left_qps)
    return (
        written != found
        or _is_empty(seen)
        or drain.message != _describe_drain(repository, drain)
        or _due(repository, drain)
    )


def _describe_drain(repository: Repository, drain: Drain) -> str:
    """Return a draining region's message.

    For a lost region, it is the result of its failover; for a planned drain, what delays it: a pause of the moves, and
    models whose changes are blocked.
    """
    if drain.disaster:
        return drain.message
    pause, held = repository.moves_pause(), describe_held(repository.find_held(drain.region))
    moving = MOVING_AWAY if pause is None else f"{MOVING_AWAY} once moves go on; they are paused: {pause.reason}"
    return f"{moving}; {held}" if held else moving


def _due(repository: Repository, drain: Drain) -> bool:
    """Check whether the drain's replan has ended long enough ago."""
    if drain.replan_id is None:
        return True
    ended = repository.replan(drain.replan_id).finished_at
    pause = min(LAST_REPLAN_AGAIN, FIRST_REPLAN_AGAIN * 2 ** min(drain.replans - 1, 10))
    return ended is not None and datetime.now(UTC) - ended >= pause


def _leaves_loss(repository: Repository, change: Change) -> bool:
    """Like `leaves_loss`; False if the model can't be read: its move waits on as before."""
    try:
        return leaves_loss(repository, change)
    except Unavailable:
        raise
    except OF_ONE:
        return False


def _describe_failures(failed: Mapping[str, str]) -> str:
    """Name the models whose desired state the region has not applied yet, with the first error."""
    first = min(failed)
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"not applied yet for {first}{more}: {failed[first]}"


def _summarize_drain(drain: Drain) -> DrainSeen:
    return DrainSeen(
        state=drain.state,
        disaster=drain.disaster,
        message=drain.message,
        models_left=drain.models_left,
        replicas_left=drain.replicas_left,
        traffic_left_qps=drain.traffic_left_qps,
    )
