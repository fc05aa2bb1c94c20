"""Verdicts on chat templates: each is found once in a worker, by a process that waits for its turn.

The verdict on the same templates is kept, so that a model that is published again, or another one of the same
checkpoint, costs no further processor time.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

from activities.runtime.owner_turns import OwnerPlaces
from activities.validation.chat_templates import process
from activities.validation.chat_templates.process import Beat, find_template_fault
from ipnext.artifacts.checkpoints.tokenizer_files import ChatTemplate
from serving.confinement.landlock import Confinement

AT_ONCE: Final = 2
"""Processes of a worker; each may take a gigabyte and a minute of processor time."""
MOST_KEPT: Final = 4096
"""Verdicts that a worker keeps; the one that was asked for longest ago goes first."""

FindTemplateFault = Callable[[Sequence[ChatTemplate], Mapping[str, str], Beat], str | None]
"""Returns the fault of the first template that is refused; None if there is none. Raises as `find_template_fault`."""


@dataclass(frozen=True)
class _Verdict:
    fault: str | None


class TemplateVerdicts:
    """Finds faults of chat templates for all validations of a worker. `find` replaces the process."""

    def __init__(
        self,
        *,
        confinement: Confinement = Confinement.AVAILABLE,
        find: Callable[..., str | None] = find_template_fault,
        most_kept: int = MOST_KEPT,
    ) -> None:
        self._confinement = confinement
        self._find = find
        self._most_kept = most_kept
        self._places = OwnerPlaces(AT_ONCE)
        self._lock = Lock()
        self._kept = OrderedDict[str, _Verdict]()

    def of(self, owner: str) -> FindTemplateFault:
        """Return the search for faults in an owner's templates."""

        def find(templates: Sequence[ChatTemplate], special_tokens: Mapping[str, str], beat: Beat) -> str | None:
            if not templates:
                return None
            key = _digest(templates, special_tokens)
            if (known := self._look_up(key)) is not None:
                return known.fault
            with self._places.take(owner, beat, "waiting for the turn to render chat templates"):
                if (known := self._look_up(key)) is None:
                    fault = self._find(templates, special_tokens, beat, confinement=self._confinement)
                    known = self._keep(key, _Verdict(fault))
            return known.fault

        return find

    def _look_up(self, key: str) -> _Verdict | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: str, verdict: _Verdict) -> _Verdict:
        with self._lock:
            self._kept[key] = verdict
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return verdict


def _digest(templates: Sequence[ChatTemplate], special_tokens: Mapping[str, str]) -> str:
    """Return the digest of all that a verdict depends on: the inputs of the process, and its limits."""
    limits = (process.COMPILE_SECONDS, process.RENDER_SECONDS, process.ALL_SECONDS, process.MEMORY_BYTES)
    texts = [(template.place, template.text) for template in templates]
    document = json.dumps([texts, dict(special_tokens), limits], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()
