"""Fault points for tests of recovery: the worker kills itself at named places.

    IPNEXT_FAULT=shift_traffic:after     kill -9 right after this activity's work, before it is reported to Temporal
    IPNEXT_FAULT=shift_traffic:before    kill -9 before it begins
    IPNEXT_FAULT=A:before,B:after        several places
    IPNEXT_FAULT_ONCE=FILE               only while FILE does not exist; it is created first.
                                         If there are several places, each has a separate file,
                                         FILE.ACTIVITY.POINT: removing it arms that place again

Read by the worker's composition root alone; without the variable nothing here is loaded.
"""

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from ipnext.errors import InvalidInput

VARIABLE = "IPNEXT_FAULT"
ONCE_VARIABLE = "IPNEXT_FAULT_ONCE"

Point = Literal["before", "after"]


def kill_this_process() -> None:
    """Kill this process, as a power failure of its machine would."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class InjectedFault:
    """Places at which to strike. With `once`, at each place only while its file does not exist."""

    places: frozenset[tuple[str, Point]]
    """Pairs of an activity's name and a point."""
    once: Path | None = None
    strike: Callable[[], None] = kill_this_process

    def strike_at(self, activity_type: str, point: Point) -> None:
        """Strike if this is one of the places."""
        if (activity_type, point) not in self.places:
            return
        file = self.file(activity_type, point)
        if file is not None:
            try:
                file.touch(exist_ok=False)
            except FileExistsError:
                return
        self.strike()

    def file(self, activity_type: str, point: Point) -> Path | None:
        """Return the file that marks a place as struck."""
        if self.once is None or len(self.places) == 1:
            return self.once
        return self.once.with_name(f"{self.once.name}.{activity_type}.{point}")


def fault_of(environment: Mapping[str, str]) -> InjectedFault | None:
    """Return the faults that the environment requests; None if it requests none.

    Raises InvalidInput for another form.
    """
    text = environment.get(VARIABLE)
    if not text:
        return None
    once = environment.get(ONCE_VARIABLE)
    return InjectedFault(places=frozenset(map(_place, text.split(","))), once=Path(once) if once else None)


def _place(text: str) -> tuple[str, Point]:
    name, _, point = text.partition(":")
    if not name or point not in get_args(Point):
        msg = f"{VARIABLE}: {text!r} is not of the form ACTIVITY:before or ACTIVITY:after"
        raise InvalidInput(msg, field=VARIABLE, value=text, allowed=("ACTIVITY:before", "ACTIVITY:after"))
    return name, cast("Point", point)


class FaultInjector(Interceptor):
    """Injects one fault into every activity of a worker."""

    def __init__(self, fault: InjectedFault) -> None:
        self._fault = fault

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See Interceptor."""
        return _FaultyActivity(next, self._fault)


class _FaultyActivity(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, fault: InjectedFault) -> None:
        super().__init__(inner)
        self._fault = fault

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        name = activity.info().activity_type
        self._fault.strike_at(name, "before")
        result = await self.next.execute_activity(input)
        self._fault.strike_at(name, "after")
        return result
