"""Hand-written histories for the checker: a small good one, and how to spoil it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.nemesis.history import Event

WALL = 1000.0
"""Wall clock less monotonic clock."""


class Tale:
    """A history in the making. Two generations of `pair`: the first serves until `CHANGED`, then the second."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.changes = [change("c1", 1, 1, 0.0, 5.0), change("c2", 2, 2, 20.0, 30.0)]
        self.workflows = [run("model/pair", "RUNNING", "idle", kind="model"), run("lifecycle/pair/c2", "COMPLETED")]
        self.replans = [{"id": "r1", "state": "adopted", "final": True}]
        self.ended: dict[str, Any] = {"left_over": [], "status": 0}
        self.model: dict[str, Any] = {
            "serving": 2,
            "retired": False,
            "held": ["pair.first.us-east.cpu"],
            "generations": {"1": {"first": 1, "second": 1}, "2": {"first": 2, "second": 1}},
            "digests": {"first/1": "d1", "second/1": "d2", "first/2": "d3"},
            "validated": [1, 2],
        }
        self.event("begin", 0.0, demand=60.0, units=3, qps=100.0, parts={"pair": ["first", "second"]})
        self.publish("c1", 1, 1, {"first": ["d1", "1.0"], "second": ["d2", "2.0"]}, at=0.0)
        self.publish("c2", 2, 2, {"first": ["d3", "3.0"]}, at=20.0)
        self.answer(10.0)
        self.answer(25.0)
        self.answer(26.0, generation=2, marks=[3.0, 2.0], snapshots={"first": "2", "second": "1"})
        self.sample(10.0, generation=1, ready=[["pair", "first", [1]], ["pair", "second", [1]]])

    def event(self, f: str, at: float, kind: str = "info", op: int = 0, /, **value: Any) -> None:
        self.events.append(Event(f, kind, "test", op, at, at + WALL, value))  # type: ignore[arg-type]

    def publish(self, change_id: str, sequence: int, generation: int, parts: dict[str, Any], *, at: float) -> None:
        op = len(self.events)
        told = {"model": "pair", "change": change_id, "parts": parts}
        self.event("publish", at, "invoke", op, **told)
        self.event("publish", at + 0.1, "ok", op, **told, sequence=sequence, generation=generation, id=change_id)

    def answer(self, at: float, *, x: float = 5.0, region: str = "us-east", **said: Any) -> None:
        op = len(self.events)
        self.event("predict", at, "invoke", op, model="pair", region=region, x=x)
        marks = said.get("marks", [1.0, 2.0])
        proof = {"generation": 1, "snapshots": {"first": "1", "second": "1"}, "marks": marks, "sum": x + marks[0]}
        self.event("predict", at + 0.01, "ok", op, status=200, **{**proof, **said})

    def failure(self, at: float, *, region: str = "us-east") -> None:
        op = len(self.events)
        self.event("predict", at, "invoke", op, model="pair", region=region, x=5.0)
        self.event("predict", at + 0.01, "fail", op, status=503, error="gone")

    def sample(self, at: float, *, generation: int, ready: list[Any], fraction: float = 1.0) -> None:
        tables = {"us-east": {"pair": [["us-east", generation, fraction]]}}
        self.event("sample", at, tables=tables, replicas={"us-east": ready}, taken={"us-east": len(ready)})

    def forwards(self, at: float, *, region: str, to: str) -> None:
        """From then on a gateway sends what it gets to another region."""
        self.event("sample", at, tables={region: {"pair": [[to, 1, 1.0]]}}, replicas={}, taken={})

    def fault(
        self, begin: float, end: float | None, role: str, *, touches_data: bool, region: str | None = None
    ) -> None:
        number = len(self.events)
        told = {"number": number, "kind": "kill", "role": role, "region": region, "touches_data": touches_data}
        self.event("fault", begin, **told)
        if end is not None:
            self.event("healed", end, number=number)

    def told(self) -> list[Event]:
        """The history, with its end."""
        self.event("quiet", 40.0)
        self.answer(41.0, generation=2, marks=[3.0, 2.0], snapshots={"first": "2", "second": "1"})
        models = {"pair": self.model | {"changes": self.changes}}
        self.event("dump", 50.0, models=models, replans=self.replans, workflows=self.workflows)
        self.event("ended", 60.0, **self.ended)
        return self.events


def change(
    name: str, sequence: int, generation: int | None, created: float, finished: float | None, **more: Any
) -> Any:
    """A change of `pair` as the store tells it; a publish that is done where nothing else is said."""
    row = {"id": name, "model": "pair", "kind": "publish", "sequence": sequence, "generation": generation}
    row |= {"state": "done", "message": "", "created": created + WALL}
    return row | {"finished": None if finished is None else finished + WALL} | more


def run(name: str, status: str, stage: str | None = None, kind: str = "lifecycle") -> dict[str, Any]:
    """A run as Temporal tells it."""
    return {"id": name, "type": kind, "status": status, "stage": stage, "begun": WALL + 20.0, "closed": WALL + 30.0}


@pytest.fixture
def tale() -> Tale:
    return Tale()


@pytest.fixture
def make_change() -> Callable[..., Any]:
    return change


@pytest.fixture
def make_run() -> Callable[..., Any]:
    return run
