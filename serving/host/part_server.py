"""Inference on the parts that a host has loaded: lease, check, queue, run. Callers supply the form of the answer."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.registry.registry import Signature
from serving.host.batching import Arrays, InferenceQueue
from serving.host.served_part import ServedPart, StartedPass
from serving.http.drain_lease import DrainLease
from serving.http.limits import BodyBudget, MemoryClaim
from serving.metrics.tallies import CANCELLED, HostTally
from serving.protocol.request_templates import RequestForms
from serving.protocol.response_templates import AnswerForm
from serving.protocol.signature import check_inputs, check_tensor
from serving.protocol.tensors import Tensor, decoded_bytes
from serving.protocol.v2 import Body, EncodedBody, InferRequest, InferResponse, proof_parameters
from serving.snapshots.held_snapshots import HeldSnapshots, Lease

DRAIN_SECONDS: Final = 6.0
"""How long a drain waits for running requests before the process ends regardless."""

R = TypeVar("R")

Finish = Callable[[EncodedBody, bool, Mapping[str, Tensor]], R]
"""Turns an encoded answer, whether all its numbers are finite, and its tensors into the caller's result."""


@dataclass(frozen=True, slots=True)
class About:
    """The target of a V2 request. `outputs` are those that it may request; if empty, all outputs of the part."""

    model: str
    part: str
    generation: int
    outputs: tuple[str, ...] = ()


Held = HeldSnapshots[ServedPart]


class _Call:
    """A request in flight, counted when it ends."""

    __slots__ = ("began", "bytes_in", "bytes_out", "claimed", "lease", "work")

    def __init__(self, lease: Lease[ServedPart], bytes_in: int) -> None:
        self.claimed = 0
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

    def __init__(
        self,
        held: Held,
        queue: InferenceQueue,
        dispose: Callable[[ServedPart], None],
        *,
        region: str,
        budget: BodyBudget | None = None,
    ) -> None:
        """`budget` counts the decoded bodies of requests until their calls have ended."""
        self._budget = budget or BodyBudget()
        self._held = held
        self._queue = queue
        self._dispose = dispose
        self._region = region
        self._in_flight = 0
        self._forms = RequestForms()
        self.drain = DrainLease()
        self.tally = HostTally()

    @property
    def region(self) -> str:
        """The region of this host."""
        return self._region

    def check_room(self, size: int) -> None:
        """Raise Unavailable if the process has no room for `size` bytes that decoding a request's body would take."""
        self._budget.limits.check_held(self._budget.held_bytes + size, size)

    def claim(self) -> MemoryClaim:
        """Return a claim on the body budget, for a request that this host executes as a graph."""
        return self._budget.claim()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count a request that this host executes as a graph. Unavailable if the host drains."""
        self._check_open()
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return self._in_flight

    def lease(self, model: str, part: str, generation: int) -> Lease[ServedPart]:
        """Lease the snapshot that serves a generation; pass the lease to `infer` or `release`.

        GenerationNotHeld, Unavailable.
        """
        try:
            self._check_open()
            return self._held.lease(model, part, generation)
        except IPnextError as error:
            self.tally.note_refusal(error.code)
            raise

    def release(self, lease: Lease[ServedPart]) -> None:
        """Return an unused lease."""
        unused = self._held.release(lease)
        if unused is not None:
            self._dispose(unused)

    def signature(self, model: str, part: str, generation: int) -> Signature:
        """Return the input and output tensors of a part. GenerationNotHeld."""
        lease = self._held.lease(model, part, generation)
        try:
            return lease.value.part.signature
        finally:
            self.release(lease)

    def begin(self, lease: Lease[ServedPart], inputs: Mapping[str, Tensor]) -> StartedPass | None:
        """Begin a pass whose other inputs arrive later. None if it should wait for them."""
        served = lease.value
        specs = {spec.name: spec for spec in served.part.signature.inputs}
        try:
            for name, tensor in inputs.items():
                check_tensor(specs[name], tensor)
        except (InvalidInput, KeyError):
            return None  # `infer` will report it
        late = frozenset(specs).difference(inputs)
        return self._queue.begin(served, {name: tensor.data for name, tensor in inputs.items()}, late)

    def infer(
        self,
        lease: Lease[ServedPart],
        inputs: Mapping[str, Tensor],
        *,
        seconds: float,
        finish: Callable[[dict[str, Tensor]], R],
        begun: StartedPass | None = None,
    ) -> R | asyncio.Future[R]:
        """Run the part and return the result of `finish` on its outputs, at once or as a future.

        Consumes the lease, even if it raises. `begun` is the result of `begin` for some of the inputs. InvalidInput and
        Unavailable are raised.
        """
        call = _Call(lease, sum(tensor.data.nbytes for tensor in inputs.values()))
        signature = lease.value.part.signature
        try:
            check_inputs(inputs, signature)
        except BaseException as error:
            self._note_refusal(call, error)
            raise
        return self._run(call, inputs, seconds, partial(_name_outputs, call, signature, finish), begun)

    def infer_v2(
        self,
        lease: Lease[ServedPart],
        body: Body,
        header_length: int | None,
        *,
        about: About,
        seconds: float,
        finish: Finish[R],
    ) -> R | asyncio.Future[R]:
        """Run the part on the body of a V2 request; otherwise as `infer`.

        `finish` receives the encoded answer, whether all its numbers are finite, and its tensors.
        """
        call = _Call(lease, len(body))
        try:
            served = lease.value
            wanted = self._forms.read(body, header_length, served.part.signature, room=self.check_room)
            if wanted.form is None and (claimed := decoded_bytes(wanted.inputs.values(), beside=body)):
                self._budget.take(claimed, body=len(body) + claimed)
                call.claimed = claimed
            served.fitting.check(wanted, partial(check_inputs, wanted.inputs, served.part.signature))
            answer = served.answer_forms.of(wanted, about, partial(self._answer_form, lease, wanted, about))
            seconds = wanted.seconds(seconds)
        except BaseException as error:
            self._note_refusal(call, error)
            raise
        return self._run(call, wanted.inputs, seconds, partial(_written, call, wanted.inputs, answer, finish), None)

    def _answer_form(self, lease: Lease[ServedPart], wanted: InferRequest, about: About) -> AnswerForm:
        """Return the answer form of a request. InvalidInput names an output that does not exist."""
        given = tuple(spec.name for spec in lease.value.part.signature.outputs)
        if not set(about.outputs) <= set(given):
            msg = f"outputs: {list(about.outputs)} are not all outputs of {about.part!r}; those are {list(given)}"
            raise InvalidInput(msg, field="outputs", value=list(about.outputs), allowed=given)
        outputs = about.outputs or given
        wanted.check_outputs(outputs)
        proof = proof_parameters(about.generation, {about.part: lease.snapshot}, self._region)
        head = InferResponse(about.model, {}, str(about.generation), wanted.id, proof)
        chosen = tuple(output.name for output in wanted.outputs) or outputs
        return AnswerForm(head, chosen, wanted.binary_names(chosen))

    def _run(
        self,
        call: _Call,
        inputs: Mapping[str, Tensor],
        seconds: float,
        finish: Callable[[Arrays], R],
        begun: StartedPass | None,
    ) -> R | asyncio.Future[R]:
        """Queue inputs that fit the part; if the queue is free for them, run them at once."""
        served = call.lease.value
        arrays = {name: tensor.data for name, tensor in inputs.items()}
        if seconds > 0 and self._queue.is_free_for(served, arrays):
            return self._now(call, arrays, finish, begun)
        try:
            work = self._queue.submit(
                served,
                arrays,
                deadline=time.monotonic() + seconds,
                finish=finish,
                on_end=partial(self._note_end, call),
                begun=begun,
            )
        except BaseException as error:
            self._note_refusal(call, error)
            raise
        call.work = work
        self._in_flight += 1
        served.tally.in_flight += 1
        return work

    def _now(
        self, call: _Call, arrays: Arrays, finish: Callable[[Arrays], R], begun: StartedPass | None
    ) -> R | asyncio.Future[R]:
        try:
            answer = finish(self._queue.run(call.lease.value, arrays, begun))
        except Exception as error:  # noqa: BLE001  # handed to the request, which judges it
            self._note_refusal(call, error)
            failed: asyncio.Future[R] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        call.note(200)
        if call.claimed:
            self._budget.give_back(call.claimed)
        self.release(call.lease)
        return answer

    async def wait_drained(self) -> None:
        """Drain, and return once nothing runs or the drain's time limit has passed."""
        self.drain.end()
        deadline = time.monotonic() + DRAIN_SECONDS
        while (self._in_flight or self._queue.pending) and time.monotonic() < deadline:  # noqa: ASYNC110  # polled once, at the end
            await asyncio.sleep(0.01)

    def _check_open(self) -> None:
        if self.drain.on:
            msg = "this host drains; ask another"
            raise Unavailable(msg)

    def _note_end(self, call: _Call) -> None:
        self._in_flight -= 1
        call.lease.value.tally.in_flight -= 1
        call.note(_status(call.work))
        self._release_call(call)

    def _note_refusal(self, call: _Call, error: BaseException) -> None:
        call.note(_status_of(error))
        self._release_call(call)

    def _release_call(self, call: _Call) -> None:
        self._budget.held_bytes -= call.claimed
        self.release(call.lease)


def _status(work: asyncio.Future[Any] | None) -> int:
    if work is None or not work.done() or work.cancelled():
        return CANCELLED
    error = work.exception()
    return 200 if error is None else _status_of(error)


def _status_of(error: BaseException) -> int:
    return error.http_status if isinstance(error, IPnextError) else 500


def _name_outputs(call: _Call, signature: Signature, finish: Callable[[dict[str, Tensor]], R], arrays: Arrays) -> R:
    outputs = {spec.name: Tensor(spec.datatype, arrays[spec.name]) for spec in signature.outputs}
    call.bytes_out = sum(tensor.data.nbytes for tensor in outputs.values())
    return finish(outputs)


def _written(call: _Call, inputs: Mapping[str, Tensor], form: AnswerForm, finish: Finish[R], arrays: Arrays) -> R:
    specs = call.lease.value.part.signature.outputs
    outputs = form.select_outputs({spec.name: Tensor(spec.datatype, arrays[spec.name]) for spec in specs})
    encoded, finite = form.encode_for(inputs, outputs)
    call.lease.value.tally.non_finite += not finite
    call.bytes_out = len(encoded.body)
    return finish(encoded, finite, outputs)
