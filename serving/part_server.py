"""Answers for the parts whose snapshots a host holds: lease, check, queue, run. Whoever asks brings the form of the answer."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.registry import Signature
from serving.batching import Arrays, Begun, InferenceQueue, Served
from serving.generations import HeldSnapshots, Lease
from serving.protocol import (
    Body,
    Encoded,
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
    proof_parameters,
)
from serving.signature import check_inputs, check_tensor
from serving.tallies import CANCELLED, HostTally
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


class _Call:
    """A request under way, to be counted at its end."""

    __slots__ = ("began", "bytes_in", "bytes_out", "lease", "work")

    def __init__(self, lease: Lease[Served], bytes_in: int) -> None:
        self.lease = lease
        self.bytes_in = bytes_in
        self.bytes_out = 0
        self.began = time.monotonic()
        self.work: asyncio.Future[Any] | None = None

    def note(self, status: int) -> None:
        key = (self.lease.generation, status)
        seconds = time.monotonic() - self.began
        self.lease.value.tally.note_answer(key, seconds, self.bytes_in, self.bytes_out)


class PartServer:
    """The requests of one host process. Used from its event loop."""

    def __init__(self, held: Held, queue: InferenceQueue, dispose: Callable[[Served], None], *, region: str) -> None:
        self._held = held
        self._queue = queue
        self._dispose = dispose
        self._region = region
        self._in_flight = 0
        self.draining = False
        self.tally = HostTally()

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
        try:
            self._check_open()
            return self._held.lease(model, part, generation)
        except IPnextError as error:
            self.tally.note_refusal(error.code)
            raise

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
        call = _Call(lease, sum(tensor.data.nbytes for tensor in inputs.values()))
        return self._submitted(call, inputs, seconds, finish, begun)

    def _submitted(
        self,
        call: _Call,
        inputs: Mapping[str, Tensor],
        seconds: float,
        finish: Callable[[dict[str, Tensor]], R],
        begun: Begun | None = None,
    ) -> asyncio.Future[R]:
        served = call.lease.value
        try:
            check_inputs(inputs, served.part.signature)
            work = self._queue.submit(
                served,
                {name: tensor.data for name, tensor in inputs.items()},
                deadline=time.monotonic() + seconds,
                finish=partial(_named, call, served.part.signature, finish),
                on_end=partial(self._ended, call),
                begun=begun,
            )
        except BaseException as error:
            self._refused(call, error)
            raise
        call.work = work
        self._in_flight += 1
        served.tally.in_flight += 1
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
        call = _Call(lease, len(body))
        try:
            wanted = decode_request(body, header_length)
            known = about.outputs or [spec.name for spec in lease.value.part.signature.outputs]
            wanted.check_outputs(known)
            seconds = wanted.seconds(seconds)
        except BaseException as error:
            self._refused(call, error)
            raise
        chosen = [output.name for output in wanted.outputs] or known
        head = InferResponse(
            about.model,
            {},
            str(about.generation),
            wanted.id,
            proof_parameters(about.generation, {about.part: lease.snapshot}, self._region),
        )
        encode = partial(answer_v2, wanted, head, chosen, partial(_counted, call, finish))
        return self._submitted(call, wanted.inputs, seconds, encode)

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

    def _ended(self, call: _Call) -> None:
        self._in_flight -= 1
        call.lease.value.tally.in_flight -= 1
        call.note(_status(call.work))
        self.release(call.lease)

    def _refused(self, call: _Call, error: BaseException) -> None:
        call.note(_status_of(error))
        self.release(call.lease)


def _status(work: asyncio.Future[Any] | None) -> int:
    if work is None or not work.done() or work.cancelled():
        return CANCELLED
    error = work.exception()
    return 200 if error is None else _status_of(error)


def _status_of(error: BaseException) -> int:
    return error.http_status if isinstance(error, IPnextError) else 500


def _named(call: _Call, signature: Signature, finish: Callable[[dict[str, Tensor]], R], arrays: Arrays) -> R:
    outputs = {spec.name: Tensor(spec.datatype, arrays[spec.name]) for spec in signature.outputs}
    call.bytes_out = sum(tensor.data.nbytes for tensor in outputs.values())
    return finish(outputs)


def _counted(call: _Call, finish: Callable[[Encoded, bool], R], encoded: Encoded, finite: bool) -> R:
    call.lease.value.tally.non_finite += not finite
    call.bytes_out = len(encoded.body)
    return finish(encoded, finite)


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
