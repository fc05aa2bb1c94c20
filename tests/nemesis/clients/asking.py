"""Asks the platform for something until it answers, and writes down every try: what all owners share."""

import threading
import time
from collections.abc import Callable
from typing import Any

from ipnext.client import Client
from ipnext.errors import DeadlineExceeded, IPnextError, Unavailable
from ipnext.model.api.resources import ModelApplied
from tests.nemesis.history import Recorder

RETRY_SECONDS = 0.5
ATTEMPTS = 120


class Asking:
    """One client of the API and the history it writes. `ending` is set when owners shall ask for nothing new."""

    def __init__(self, recorder: Recorder, api: str) -> None:
        self.recorder = recorder
        self.client = Client(api, timeout_seconds=10)
        self.ending = threading.Event()

    def close(self) -> None:
        self.client.close()

    def ask(self, f: str, process: str, call: Callable[[], Any], **told: Any) -> bool:
        """Ask until there is an answer; each try is an operation of its own, with the same id of a change.

        Whether it was yes.
        """
        for _ in range(ATTEMPTS):
            op = self.recorder.op()
            self.recorder.write(f, "invoke", process, op, **told)
            try:
                answer = call()
            except (Unavailable, DeadlineExceeded) as error:
                self.recorder.write(f, "info", process, op, code=error.code, message=error.message[:200], **told)
                time.sleep(RETRY_SECONDS)
                continue
            except IPnextError as error:
                self.recorder.write(f, "fail", process, op, code=error.code, message=error.message[:200], **told)
                return False
            self.recorder.write(f, "ok", process, op, **told, **_answered(answer))
            return True
        return False


def _answered(answer: Any) -> dict[str, Any]:
    """What is kept of an answer: the change that it tells of."""
    if isinstance(answer, tuple):
        (answer,) = answer
    change = answer.change if isinstance(answer, ModelApplied) else answer
    sequence = getattr(change, "sequence", None)
    return {"sequence": sequence, "generation": getattr(change, "generation", None), "id": getattr(change, "id", None)}
