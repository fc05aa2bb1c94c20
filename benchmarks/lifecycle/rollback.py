"""How soon a rollback has all traffic on the former generation, whatever stands in its way.

    python -m benchmarks.lifecycle.rollback  (--rounds 5 --json out.json)

The embedded platform with real hosts and gateways, two regions. Each round asks for a rollback while a canary holds for
an hour, while it waits for an approval, while the model is paused, and while a freeze is in force; and after a rollout
is complete. Seconds from the request until the change has ended: all gateways follow by then. The baseline is a publish
in one step, which loads first.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lifecycle import manifest, snapshots
from demo.embedded import Embedded
from ipnext.client import Client
from ipnext.model.lifecycle.changes.change import ChangeState

MODEL = "back"
AT_ONCE = {"canary": 1, "maxStep": 1}
HELD = {"canary": 0.5, "maxStep": 0.5, "holdSeconds": 3600}
ASKING = {"canary": 0.5, "maxStep": 0.5, "approval": "canary"}
FREEZE = """
apiVersion: ipnext/v1
kind: Freeze
metadata: {name: all}
spec:
  reason: measured
  timeZone: UTC
  windows: [{start: 2020-01-01T00:00, end: 2090-01-01T00:00}]
"""


class Rounds:
    """One model on one platform."""

    def __init__(self, client: Client, sources: list[Path]) -> None:
        self._client, self._sources, self._numbers = client, sources, count()
        self.seconds: dict[str, list[float]] = {}

    def settle(self, rollout: Mapping[str, object], *, rolling: bool = True) -> None:
        """Bring a generation to serving, and roll out another one by `rollout`.

        If `rolling`, the second rollout is at its canary when this returns.
        """
        self._applied(AT_ONCE)
        self._publish(wait=True)
        self._applied(rollout)
        self._publish(wait=not rolling)
        if rolling:
            self._until_canary()

    def timed(self, name: str, act: Callable[[], str]) -> None:
        """Seconds from asking to the end of a change."""
        began = time.monotonic()
        change = self._client.wait_change(act(), timeout_seconds=120)
        taken = time.monotonic() - began
        assert change.state is ChangeState.DONE, change
        self.seconds.setdefault(name, []).append(taken)

    def back(self) -> str:
        """Ask for a rollback."""
        return self._client.rollback(MODEL).id

    def publish(self) -> str:
        """Ask for a publish."""
        return self._client.publish(MODEL, {"dense": self._next()}).id

    def one(self) -> None:
        """Every situation once."""
        self.settle(HELD)
        self.timed("while a canary holds", self.back)
        self.settle(ASKING)
        self.timed("while it waits for an approval", self.back)
        self.settle(HELD)
        self._client.pause(MODEL)
        self.timed("while it is paused", self.back)
        self._client.resume(MODEL)
        self.settle(HELD)
        self._client.apply(FREEZE)
        self.timed("while it is frozen", self.back)
        self._client.delete_freeze("all")
        self.settle(AT_ONCE, rolling=False)
        self.timed("after a rollout", self.back)
        self._applied(AT_ONCE)
        self.timed("baseline: a publish in one step", self.publish)

    def _applied(self, rollout: Mapping[str, object]) -> None:
        for applied in self._client.apply(manifest(MODEL, **rollout)):
            change = getattr(applied, "change", None)
            if change is not None:
                self._client.wait_change(change.id, timeout_seconds=120)

    def _publish(self, *, wait: bool) -> None:
        change = self.publish()
        if wait:
            self._client.wait_change(change, timeout_seconds=120)

    def _next(self) -> Path:
        return self._sources[next(self._numbers) % len(self._sources)]

    def _until_canary(self) -> None:
        while len({share.generation for share in self._client.model(MODEL).status.traffic.get("us-east", ())}) < 2:
            time.sleep(0.1)
        time.sleep(1.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Embedded(Path(place) / "state") as platform:
        client = Client(platform.endpoints["api"])
        rounds = Rounds(client, snapshots(Path(place) / "snapshots", 40))
        rounds.settle(AT_ONCE, rolling=False)
        for _ in range(given.rounds):
            rounds.one()
    base = statistics.median(rounds.seconds["baseline: a publish in one step"])
    shown = Table(title=f"a rollback, {given.rounds} rounds, seconds")
    for column in ("asked", "median", "most", "median / baseline"):
        shown.add_column(column, justify="left" if column == "asked" else "right")
    for name, seconds in rounds.seconds.items():
        middle = statistics.median(seconds)
        shown.add_row(name, f"{middle:.2f}", f"{max(seconds):.2f}", f"{middle / base:.2f}")
    Console().print(shown)
    if given.json:
        given.json.write_text(json.dumps(rounds.seconds, indent=2))


if __name__ == "__main__":
    main()
