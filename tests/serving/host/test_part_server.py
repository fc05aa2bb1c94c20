"""A request that is answered at once is counted, given back and judged as one that waited."""

import asyncio

import numpy as np
import pytest

from ipnext.errors import DeadlineExceeded, InvalidInput
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.host.batching import InferenceQueue
from serving.host.part_server import About, PartServer
from serving.host.served_part import BatchLimits, ServedPart
from serving.protocol import tensors
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, encode_request
from serving.snapshots.held_snapshots import HeldSnapshots


class Fragile:
    """Gives `x` back. 7 breaks it."""

    rows_are_independent = True
    size_bytes = 0
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
    )

    def infer(self, inputs):
        if 7 in inputs["x"]:
            msg = "seven"
            raise ValueError(msg)
        return {"y": inputs["x"].copy()}

    def warm_up(self):
        pass

    def close(self):
        pass


HOLD = HostedSnapshot(
    model="m", part="p", engine="torch", snapshot=4, digest="d" * 64, uri="file:///x", generations=(1,)
)


@pytest.fixture
async def served():
    served = ServedPart(Fragile(), BatchLimits())
    served.costs.note(512, 1e-6)
    return served


@pytest.fixture
async def server(served):
    held, queue = HeldSnapshots(), InferenceQueue()
    held.want([HOLD])
    held.note_loaded(HOLD, served)
    yield PartServer(held, queue, lambda _: pytest.fail("nothing is closed"), region="here")
    queue.close()


def ask(server, *numbers, name="x", seconds=60.0):
    encoded = encode_request(InferRequest({name: Tensor("FP32", np.array(numbers, np.float32))}))
    return server.infer_v2(
        server.lease("m", "p", 1),
        bytearray(encoded.body),
        encoded.header_length,
        about=About("m", "p", 1),
        seconds=seconds,
        finish=lambda encoded, finite, _: (encoded.body, finite),
    )


async def test_bytes_that_the_part_takes_none_of_are_refused_before_they_are_read(server, monkeypatch):
    monkeypatch.setattr(tensors, "_bytes_elements", lambda *_: pytest.fail("read"))
    encoded = encode_request(InferRequest({"x": Tensor("BYTES", np.array([b"a"], np.object_))}))
    lease = server.lease("m", "p", 1)
    with pytest.raises(InvalidInput, match="datatype must be FP32, got BYTES"):
        server.infer_v2(
            lease, encoded.body, encoded.header_length, about=About("m", "p", 1), seconds=1, finish=lambda *_: None
        )
    assert lease.entry.leases == 0


async def test_an_answer_that_can_be_had_at_once_is_and_counts(server, served):
    body, finite = ask(server, 1, 2)
    assert finite
    assert b'"data":[1.0,2.0]' in body
    assert served.tally.answers[1, 200].seconds.count == 1
    assert (served.tally.in_flight, server.in_flight) == (0, 0)


async def test_an_error_of_the_part_comes_as_that_of_one_that_waited_would(server, served):
    work = ask(server, 7)
    assert isinstance(work, asyncio.Future)
    with pytest.raises(ValueError, match="seven"):
        await work
    assert served.tally.answers[1, 500].seconds.count == 1
    assert server.lease("m", "p", 1).entry.leases == 1


async def test_a_request_without_time_left_is_not_answered_at_once(server):
    with pytest.raises(DeadlineExceeded):
        await ask(server, 1, seconds=0.0)


async def test_outputs_that_a_router_takes_for_the_parts_and_are_not_are_refused(server):
    encoded = encode_request(InferRequest({"x": Tensor("FP32", np.zeros(1, np.float32))}))
    about = About("m", "p", 1, ("score",))
    lease = server.lease("m", "p", 1)
    with pytest.raises(InvalidInput, match="score"):
        server.infer_v2(lease, encoded.body, encoded.header_length, about=about, seconds=1, finish=lambda *_: None)


async def test_a_wrong_request_is_refused_each_time_it_comes(server):
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"'z' does not exist|'x' is missing"):
            ask(server, 1, name="z")
    assert server.lease("m", "p", 1).entry.leases == 1
