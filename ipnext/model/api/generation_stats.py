"""Answers of a generation, in figures that people read."""

from collections.abc import Mapping

from pydantic import Field

from ipnext.model.value import WrittenValue


class GenerationAnswers(WrittenValue):
    """The answers of one generation since the routers started, over all regions that tell."""

    generation: int
    requests: int
    errors: int
    """Answers with a 5xx status."""
    non_finite: int
    """Answers that held NaN or infinity."""
    p50_ms: float
    """Of answers with status 200, to within a bucket of 19 %."""
    p99_ms: float
    ttft_p50_ms: float | None = None
    """Of answers that streamed: the time to the first piece; None if none did."""
    ttft_p99_ms: float | None = None
    itl_p50_ms: float | None = None
    """Of answers that streamed: the mean time between two pieces of one; None if none had two."""
    itl_p99_ms: float | None = None
    compared_with: int | None = None
    """The generation that `drift` is against: the one that serves; None for that one itself."""
    drift: Mapping[str, float] = Field(default_factory=dict)
    """Output -> population stability index, over the regions in which both answered."""
