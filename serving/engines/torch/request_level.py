"""Request-level computation: the share of a program that depends on request inputs alone runs once, not once per row.

A ranking request often has one user and many candidates. If the user's inputs have batch 1, the operations that depend
on them alone run at batch 1, and each result is repeated when it meets a candidate's tensor. If a program cannot be
partitioned (a result without a batch, or with a multiple of it), or its halves answer differently, its inputs are
repeated instead.

Used by the torch engine for snapshots whose signature names request inputs.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from ipnext.model.registry.registry import Signature
from serving.engines.torch.program_cache import TorchProgram
from serving.engines.torch.request_partition import ROWS, Call, partition_by_request, repeat
from serving.engines.torch.warmup_inputs import close, draw_inputs
from serving.protocol.tensors import Array

_TRIAL_ROWS: Final = (2, 5, 3)


class RequestCall:
    """A program whose request inputs may have one row while the others have many. `partitioned` may be set later."""

    def __init__(self, whole: Call, signature: Signature) -> None:
        specs = list(enumerate(signature.inputs))
        batched = [place for place, spec in specs if spec.shape and spec.shape[ROWS] == -1]
        self.signature = signature
        self._whole = whole
        self._request = [place for place in batched if signature.inputs[place].name in signature.request_inputs]
        self._rest = [place for place in batched if place not in self._request]
        self.partitioned: Call | None = None

    def __call__(self, given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the outputs, with a row per row of the other inputs."""
        rows = self._rows(given)
        single = [given[place].shape[ROWS] == 1 for place in self._request]
        if rows == 1 or not any(single):
            return self._whole(given)
        if self.partitioned is not None and all(single):
            return self.partitioned(given)
        return self.run_repeated(given)

    def run_repeated(self, given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run with each request input repeated for every row of the others. Always correct."""
        full, rows = list(given), self._rows(given)
        for place in self._request:
            full[place] = repeat(full[place], ROWS, rows, copied=True)
        return self._whole(full)

    def _rows(self, given: Sequence[torch.Tensor]) -> int:
        return max(given[place].shape[ROWS] for place in self._rest or self._request)


def agreeing_partition(
    program: TorchProgram,
    whole: RequestCall,
    to_torch: Callable[[str, Array], torch.Tensor],
    to_numpy: Callable[[torch.Tensor], Array],
) -> Call | None:
    """Partition the program, if possible and if it answers drawn requests as with repeated inputs; else None."""
    signature = whole.signature
    cut = partition_by_request(program, signature.request_inputs)
    if cut is None:
        return None

    def alike(call: Call, given: Sequence[torch.Tensor]) -> bool:
        pairs = zip(signature.outputs, whole.run_repeated(given), call(given), strict=True)
        return all(close(spec, to_numpy(left), to_numpy(right)) for spec, left, right in pairs)

    requests = [_draw_request(signature, rows, to_torch) for rows in _TRIAL_ROWS]
    for copied in (False, True):
        try:
            with torch.inference_mode():
                call = cut.direct(requests[-1], copied=copied)
                if all(alike(call, given) for given in requests):
                    return call
        except (IndexError, RuntimeError):
            continue
    return None


def _draw_request(
    signature: Signature, rows: int, to_torch: Callable[[str, Array], torch.Tensor]
) -> list[torch.Tensor]:
    """Draw a request with one row of each request input."""
    arrays = draw_inputs(signature, rows, np.random.default_rng(rows))
    once = signature.request_inputs
    return [to_torch(spec.name, arrays[spec.name][: 1 if spec.name in once else rows]) for spec in signature.inputs]
