"""Reports of checks that run a snapshot's program, and the golden requests that a snapshot may bring."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ipnext.model.registry.optimization import LatencyPair, Measured, ReplayReport
from ipnext.model.registry.registry import Datatype
from ipnext.model.value import Value, WrittenValue

GOLDEN_FILE: Final = "golden.json"
"""Of a snapshot: requests with the outputs that it has to give, within tolerances."""
GOLDEN_FORMAT: Final = "ipnext/golden/v1"
MOST_GOLDEN: Final = 1000
"""Golden requests of a snapshot."""
LARGEST_GOLDEN_BYTES: Final = 16 << 20
MOST_GOLDEN_SEPARATORS: Final = 1_000_000
"""Commas and opening brackets in the file: values of all tensors."""
ABSOLUTE: Final = 1e-5
RELATIVE: Final = 1.3e-6
"""Tolerances that are not given: those of `torch.testing.assert_close` for float32."""

Text = Annotated[str, Field(min_length=1, max_length=512)]
Tolerance = Annotated[float, Field(ge=0, le=1e12)]


class RegressionReport(Value):
    """Figures of the serving snapshot (`before`) and of the new one (`after`) on the same replay set."""

    replay: ReplayReport
    auc: Measured | None = None
    log_loss: Measured | None = None
    normalized_entropy: Measured | None = None
    top_k_overlap: float | None = None
    """Share of the serving snapshot's top rows that are among the new one's."""
    max_error: float
    """Largest absolute difference of any output."""
    latency_us: tuple[LatencyPair, ...] = ()
    """Only if they are limited."""
    broken: tuple[str, ...] = ()
    """Limits that are not kept, or can't be judged."""

    @property
    def summary(self) -> str:
        """The figures in one line."""
        pairs = {"AUC": self.auc, "log-loss": self.log_loss, "normalized entropy": self.normalized_entropy}
        told = [f"{name} {pair.after:.6g} after {pair.before:.6g}" for name, pair in pairs.items() if pair is not None]
        return ", ".join([f"{self.replay.rows:,} rows", *told])


class GoldenTensor(WrittenValue):
    """A tensor as the Open Inference Protocol V2 has it in JSON."""

    name: Text
    datatype: Datatype
    shape: tuple[Annotated[int, Field(ge=0)], ...] = Field(max_length=64)
    data: list[Any]


class GoldenOutput(GoldenTensor):
    """An expected output. A value fits if it differs by no more than `absolute + relative * |expected|`.

    Whole numbers, booleans and texts have to be equal.
    """

    absolute: Tolerance = ABSOLUTE
    relative: Tolerance = RELATIVE


class GoldenRequest(WrittenValue):
    """One request, and the outputs that are compared; others are not."""

    name: Text
    inputs: tuple[GoldenTensor, ...] = Field(min_length=1, max_length=4096)
    outputs: tuple[GoldenOutput, ...] = Field(min_length=1, max_length=4096)


class GoldenSet(WrittenValue):
    """The file GOLDEN_FILE."""

    format: Literal["ipnext/golden/v1"] = GOLDEN_FORMAT
    requests: tuple[GoldenRequest, ...] = Field(min_length=1, max_length=MOST_GOLDEN)


class GoldenReport(Value):
    """Outcome of the golden requests of a snapshot."""

    requests: int
    values: int
    """Values that were compared."""
    largest_error: float = 0.0
    """Largest absolute difference of a number from the expected one."""
    mismatches: int = 0
    shown: tuple[str, ...] = ()
    """The first of them: request, output, index, expected and got."""
