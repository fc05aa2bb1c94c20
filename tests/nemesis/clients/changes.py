"""The publishers.

Clients that publish new snapshots while faults strike, and write down what they asked and were told.
"""

import random
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.nemesis.clients.asking import Asking
from tests.nemesis.models import BASE_DEMAND, JUDGED, Bad, Forge, Published, manifest


class Changes:
    """Publishes snapshots of models. `parts`: model -> its parts.

    `judged` is set once users ask, so that gates have something to judge by.
    """

    def __init__(self, asking: Asking, forge: Forge, parts: Mapping[str, tuple[str, ...]], *, refresh: str) -> None:
        self.parts = parts
        self._refresh = refresh
        self._asking = asking
        self._forge = forge
        self._forging = threading.Lock()
        self._twins = ThreadPoolExecutor(4)
        self.judged = False

    def close(self) -> None:
        self._twins.shutdown()

    def publish(self, process: str, model: str, parts: tuple[str, ...], *, poisoned: bool = False) -> str:
        """Publish new snapshots of some parts; the change's id, whether it was acknowledged or not."""
        return self._publish(process, model, self._made(parts, poisoned=poisoned))

    def manifest(self, model: str, qps: float = BASE_DEMAND, *, units: int = 1) -> str:
        """The manifest of a model of this run; `units` of supply for each replica."""
        return manifest(model, qps, refresh=self._refresh, few="fail" if self.judged else "pass", units=units)

    def source_of(self, model: str) -> Path:
        """The directory of a model's source."""
        return self._forge.source_of(model)

    def bring(self, source: Path) -> None:
        """Move a new snapshot into a source's directory: what becomes of it is not asked for."""
        with self._forging:
            self._forge.bring(source)

    def publish_often(self, model: str, draw: random.Random) -> None:
        """New snapshots of a model, one after the other, until nothing new is asked for."""
        if model == JUDGED:
            self._publish_judged(model, draw)
            return
        process, poisoned = f"publisher-{model}", False
        while not self._asking.ending.wait(draw.uniform(0.5, 3.0)):
            whole = poisoned or draw.random() < 0.5  # a poisoned part is replaced by the next publish
            some = self.parts[model] if whole else (draw.choice(self.parts[model]),)
            how = draw.random()
            poisoned = how < 0.1
            if poisoned:
                self.publish(process, model, some, poisoned=True)
            elif how < 0.3:
                self._twice_at_once(process, model, some, same=False)
            elif how < 0.5:
                self._twice_at_once(process, model, some, same=True)
            else:
                self.publish(process, model, some)

    def _publish_judged(self, model: str, draw: random.Random) -> None:
        """Seldom enough that gates come to decide; some of it answers too slowly, or predicts otherwise."""
        while not self._asking.ending.wait(draw.uniform(4.0, 10.0)):
            how = draw.random()
            bad: Bad | None = "slow" if how < 0.12 else "shifted" if how < 0.4 else None
            self._publish(f"publisher-{model}", model, self._made(self.parts[model], bad=bad), bad=bad)

    def _publish(
        self,
        process: str,
        model: str,
        made: dict[str, Published],
        change_id: str | None = None,
        bad: Bad | None = None,
    ) -> str:
        change_id = change_id or f"{process}-{self._asking.recorder.op()}"
        told = {part: [published.digest, repr(published.mark)] for part, published in made.items()}
        directories = {part: published.directory for part, published in made.items()}
        more = {"bad": bad} if bad else {}
        call = lambda: self._asking.client.publish(model, directories, change_id=change_id)  # noqa: E731 - asked several times
        self._asking.ask("publish", process, call, model=model, change=change_id, parts=told, **more)
        return change_id

    def _twice_at_once(self, process: str, model: str, parts: tuple[str, ...], *, same: bool) -> None:
        """Two publishes at the same moment: the same one twice, or two that race."""
        made = [self._made(parts)] * 2 if same else [self._made(parts), self._made(parts)]
        change_id = f"{process}-{self._asking.recorder.op()}" if same else None
        asked = [
            self._twins.submit(self._publish, f"{process}-{twin}", model, one, change_id)
            for twin, one in zip("ab", made, strict=True)
        ]
        for each in asked:
            each.result()

    def _made(self, parts: tuple[str, ...], *, poisoned: bool = False, bad: Bad | None = None) -> dict[str, Published]:
        with self._forging:
            return {part: self._forge.make(part, poisoned=poisoned, bad=bad) for part in parts}
