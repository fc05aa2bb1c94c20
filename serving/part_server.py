"""Answers for the parts whose snapshots a host holds: lease, check, queue, run. Whoever asks brings the form of the answer."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from ipnext.errors import InvalidInput, Unavailable
from ipnext.model.registry import Signature
from serving.batching import Arrays, Begun, InferenceQueue, Served
from serving.generations import HeldSnapshots, Lease
from serving.protocol import Body, Encoded, InferRequest, InferResponse, decode_request, encode_response
from serving.signature import check_inputs, check_tensor
from serving.tensors import Tensor, all_finite

DRAIN_SECONDS: Final = 6.0
"""How long a drain waits for running requests before the process ends all the same."""

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class About:
    """What a V2 request is about. `outputs` are those that there are for it; none: all of the part's."""

    model: str
    part: str
    generation: int
    outputs: tuple[str, ...] = ()


Held = HeldSnapshots[Served]


class PartServer:
    """The requests of one host process. Used from its event loop."""

    def __init__(self, held: Held, queue: InferenceQueue, dispose: Callable[[Served], None], *, region: str) -> None:
        self._held = held
        self._queue = queue
        self._dispose = dispose
        self._region = region
        self._in_flight = 0
        self.draining = False

    @property
    def region(self) -> str:
        """The region of this host."""
        return self._region

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request that this host takes further by itself. Unavailable while it drains."""
        self._check_open()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._in_flight

    def lease(self, model: str, part: str, generation: int) -> Lease[Served]:
        """The snapshot that answers for a generation; hand it to `infer` or `release`. GenerationNotHeld, Unavailable."""
        self._check_open()
        return self._held.lease(model, part, generation)

    def release(self, lease: Lease[Served]) -> None:
        """Give a lease back that no request used."""
        unused = self._held.release(lease)
        if unused is not None:
            self._dispose(unused)

    def signature(self, model: str, part: str, generation: int) -> Signature:
        """The tensors that a part takes and gives. GenerationNotHeld."""
        lease = self._held.lease(model, part, generation)
        try:
            return lease.value.part.signature
        finally:
            self.release(lease)

    def begin(self, lease: Lease[Served], inputs: Mapping[str, Tensor]) -> Begun | None:
        """What can be computed already of a pass whose other inputs come later; None where it had better wait for them."""
        served = lease.value
        specs = {spec.name: spec for spec in served.part.signature.inputs}
        try:
            for name, tensor in inputs.items():
                check_tensor(specs[name], tensor)
        except (InvalidInput, KeyError):
            return None  # `infer` will say so
        late = frozenset(specs).difference(inputs)
        return self._queue.begin(served, {name: tensor.data for name, tensor in inputs.items()}, late)

    def infer(
        self,
        lease: Lease[Served],
        inputs: Mapping[str, Tensor],
        *,
        seconds: float,
        finish: Callable[[dict[str, Tensor]], R],
        begun: Begun | None = None,
    ) -> asyncio.Future[R]:
        """What `finish` makes of the part's outputs. Takes the lease over, also where it raises InvalidInput at once.

        `begun` is what `begin` gave for some of the inputs.
        """
        served = lease.value
        try:
            check_inputs(inputs, served.part.signature)
            work = self._queue.submit(
                served,
                {name: tensor.data for name, tensor in inputs.items()},
                deadline=time.monotonic() + seconds,
                finish=partial(_named, served.part.signature, finish),
                on_end=partial(self._ended, lease),
                begun=begun,
            )
        except BaseException:
            self.release(lease)
            raise
        self._in_flight += 1
        return work

    def infer_v2(
        self,
        lease: Lease[Served],
        body: Body,
        header_length: int | None,
        *,
        about: About,
        seconds: float,
        finish: Callable[[Encoded, bool], R],
    ) -> asyncio.Future[R]:
        """As `infer`, from the body of a V2 request to that of its answer.

        `finish` gets the answer and whether all its numbers are finite.
        """
        try:
            wanted = decode_request(body, header_length)
            known = about.outputs or [spec.name for spec in lease.value.part.signature.outputs]
            wanted.check_outputs(known)
        except BaseException:
            self.release(lease)
            raise
        chosen = [output.name for output in wanted.outputs] or known
        head = InferResponse(
            about.model,
            {},
            str(about.generation),
            wanted.id,
            {"generation": about.generation, "snapshots": {about.part: lease.snapshot}, "region": self._region},
        )
        encode = partial(answer_v2, wanted, head, chosen, finish)
        return self.infer(lease, wanted.inputs, seconds=seconds, finish=encode)

    async def drained(self) -> None:
        """Drain, and return once nothing runs or the drain's time is over."""
        self.draining = True
        deadline = time.monotonic() + DRAIN_SECONDS
        while (self._in_flight or self._queue.pending) and time.monotonic() < deadline:  # noqa: ASYNC110  # asked once, at the end
            await asyncio.sleep(0.01)

    def _check_open(self) -> None:
        if self.draining:
            msg = "this host drains; ask another"
            raise Unavailable(msg)

    def _ended(self, lease: Lease[Served]) -> None:
        self._in_flight -= 1
        self.release(lease)


def _named(signature: Signature, finish: Callable[[dict[str, Tensor]], R], arrays: Arrays) -> R:
    return finish({spec.name: Tensor(spec.datatype, arrays[spec.name]) for spec in signature.outputs})


def answer_v2(
    wanted: InferRequest,
    head: InferResponse,
    chosen: Sequence[str],
    finish: Callable[[Encoded, bool], R],
    outputs: Mapping[str, Tensor],
) -> R:
    """What `finish` makes of the V2 answer with the chosen outputs, and of whether all its numbers are finite."""
    finite = all(all_finite(outputs[name]) for name in chosen)
    response = replace(head, outputs={name: outputs[name] for name in chosen})
    return finish(encode_response(response, binary=wanted.binary_names(chosen)), finite)
