"""What a run of the generative demo found, as a file for scripts."""

from collections.abc import Mapping
from pathlib import Path

from demo.genai.gemma import voice_of
from ipnext.model.value import Value

VOICES = {"first": "plain", "second": "pirate", "rolled back": "plain"}
"""Step -> whose voice answers after it."""
ALIKE_MARGIN = 0.2
"""By how much the sentences that mean the same must be nearer to each other than those that do not."""


class GenaiReport(Value):
    """Figures of one run; seconds are wall time. Streams are those of the steady talkers."""

    texts: Mapping[str, str]
    """Step -> what the model said to one and the same question."""
    streams: int
    broken: int
    mixed: int
    tokens: int
    longest_gap_seconds: float
    """Between two pieces of one stream."""
    longest_first_seconds: float
    """From a request to its first piece."""
    streams_by_generation: Mapping[str, int]
    first_publish_seconds: float
    second_publish_seconds: float
    rollback_seconds: float
    alike: float
    """Cosine of two sentences that mean the same."""
    unlike: float
    """Cosine of two sentences that do not."""
    failures: tuple[str, ...] = ()
    total_seconds: float

    @property
    def sound(self) -> bool:
        """True if no stream broke, each generation spoke with its own voice, and sentences of one meaning are near.

        Texts are not compared: on a CPU in bfloat16 even the likeliest token depends on what else is in the batch.
        """
        unbroken = self.broken == 0 and self.mixed == 0 and len(self.streams_by_generation) > 1
        own = all(voice_of(self.texts[step]) == voice for step, voice in VOICES.items())
        return unbroken and own and self.alike - self.unlike > ALIKE_MARGIN

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        half = path.with_name(path.name + ".part")
        half.write_text(self.model_dump_json(indent=2) + "\n")
        half.replace(path)
