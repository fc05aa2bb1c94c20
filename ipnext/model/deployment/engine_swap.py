"""Swaps of engines from one snapshot of a part to another."""

from typing import Literal

from ipnext.model.value import Name, Value

SwapState = Literal["swapping", "swapped", "started_anew"]


class EngineSwap(Value):
    """An engine that went over, or goes over, from one snapshot of a part to another."""

    model: Name
    part: Name
    former: int
    snapshot: int
    state: SwapState
    """`started_anew`: it could not go over, so it was ended, and another engine was started with the snapshot."""
    seconds: float = 0.0
    """In which it took no request."""
    message: str | None = None
    """Why it was started anew."""

    @property
    def text(self) -> str:
        """For people."""
        step = f"{self.part} from snapshot {self.former} to {self.snapshot}"
        match self.state:
            case "swapping":
                return f"swaps {step}"
            case "swapped":
                return f"swapped {step} in {self.seconds:.1f} s"
            case "started_anew":
                return f"could not swap {step}, started anew: {self.message}"
