"""What the KServe SDK's own client makes of an edge; runs in an environment of its own, for its pins are not ours.

`PYTHON kserve_client.py URL` writes one JSON object: a name for each call, and what came of it.
"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

VALUES = {
    "BOOL": np.array([[True, False]]),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "FP16": np.array([[0.1, -65504.0]], np.float16),
    "FP32": np.array([[0.1, -3e38]], np.float32),
    "FP64": np.array([[0.1, -1e308]], np.float64),
    "BYTES": np.array([[b"one", b"two"]], np.object_),
}


def request(model, datatype, array, *, binary, wanted=True):
    """A request for `y` as the client builds it."""
    given = InferInput("x", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    outputs = [RequestedOutput("y", parameters={"binary_data": binary})] if wanted else None
    return InferRequest(model_name=model, infer_inputs=[given], request_id="k1", request_outputs=outputs)


async def round_trip(client, url, model, datatype, *, binary):
    """Whether the values come back bit for bit."""
    array = VALUES[datatype]
    response = await client.infer(url, request(model, datatype, array, binary=binary), model_name=model)
    got = response.outputs[0].as_numpy()
    if datatype == "BYTES":
        return [word if isinstance(word, bytes) else word.encode() for word in got.ravel()] == list(array.ravel())
    return got.tobytes() == array.tobytes() and got.shape == array.shape and response.id == "k1"


async def outcome(awaitable):
    """The value of a call, or the error that the client raises."""
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001  # whatever the client makes of it is what is asked for
        return f"{type(error).__name__}: {error}"


async def main(url):
    """All calls, one after the other."""
    found = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found["live"] = await outcome(client.is_server_live(url))
        found["ready"] = await outcome(client.is_server_ready(url))
        found["model ready"] = await outcome(client.is_model_ready(url, "echo-fp32"))
        found["absent ready"] = await outcome(client.is_model_ready(url, "absent"))
        for model in ("echo", "chain"):
            for datatype in VALUES:
                for binary in (True, False):
                    if datatype == "FP16" and not binary:
                        continue
                    name = f"{model}-{datatype.lower()}"
                    call = round_trip(client, url, name, datatype, binary=binary)
                    found[f"{name} {'binary' if binary else 'json'}"] = await outcome(call)
        absent = request("absent", "FP32", VALUES["FP32"], binary=True)
        found["absent"] = await outcome(client.infer(url, absent, model_name="absent"))
        wrong = request("echo-fp32", "FP64", VALUES["FP64"], binary=True)
        found["wrong"] = await outcome(client.infer(url, wrong, model_name="echo-fp32"))
        plain = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]}]}
        answer = await outcome(client.infer(url, plain, model_name="chain-fp32"))
        found["plain"] = answer if isinstance(answer, str) else answer.to_rest()[0]["outputs"][0]["data"]
    json.dump(found, sys.stdout, default=str)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
