"""All who ask the platform for changes, each in a thread of their own."""

import random
import threading
from typing import Self

from tests.nemesis.clients.asking import Asking
from tests.nemesis.clients.changes import Changes
from tests.nemesis.clients.owners import CapacityEngineer, ModelOwner
from tests.nemesis.models import APPROVED

LAST_WORDS_SECONDS = 240.0
"""What was begun is ended: a freeze is lifted, a region brought back."""


class People:
    """Publishers, owner and capacity engineer work within `with`; the approver from `arrive` to `leave`."""

    def __init__(self, asking: Asking, changes: Changes, seed: int) -> None:
        draw = random.Random(seed)
        self._asking = asking
        self._over = threading.Event()
        owner, engineer = ModelOwner(asking, changes), CapacityEngineer(asking)

        def own() -> random.Random:
            return random.Random(draw.randrange(2**32))

        self._threads = [
            *(
                threading.Thread(target=changes.publish_often, args=(model, own()), name=model)
                for model in changes.parts
            ),
            threading.Thread(target=owner.work, args=(own(),), name="owner"),
            threading.Thread(target=engineer.work, args=(own(),), name="capacity"),
        ]
        self._approves = APPROVED in changes.parts
        self._approver = threading.Thread(target=owner.approve, args=(own(), self._over), name="approver")

    def arrive(self) -> None:
        if self._approves:
            self._approver.start()

    def leave(self) -> None:
        self._over.set()
        if self._approver.ident is not None:
            self._approver.join(LAST_WORDS_SECONDS)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.ending.set()
        for thread in self._threads:
            thread.join(LAST_WORDS_SECONDS)
