"""The progress of an engine that does not answer yet: reported by its host, shown with each replica."""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field

from ipnext.model.value import Name, Value

StartStage = Literal["fetching", "waiting", "loading", "canary", "adapters"]

_WORDS: Final[Mapping[StartStage, str]] = {
    "fetching": "is fetched and checked",
    "waiting": "waits for the memory of engines that leave",
    "loading": "vLLM loads the model",
    "canary": "vLLM answers its first request",
    "adapters": "vLLM loads its adapters",
}


class EngineStart(Value):
    """An engine on its way to its first good answer, the first time or after it died."""

    part: Name
    snapshot: int
    stage: StartStage
    """`loading`: the process runs and says nothing of its health yet."""
    seconds: float = Field(ge=0)
    """For which it has been in this stage."""
    output: str | None = None
    """The last line of its log."""

    @property
    def text(self) -> str:
        """The progress, for people."""
        last = f"; last output: {self.output}" if self.output else ""
        return f"{self.part} snapshot {self.snapshot}: {_WORDS[self.stage]}, {self.seconds:.0f} s{last}"
