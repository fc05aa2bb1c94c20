"""An answer written by its form is the answer that the codec writes, byte for byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.errors import IPnextError
from serving.protocol.response_templates import AnswerForm, AnswerForms
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, InferResponse, RequestedOutput, encode_response

HEAD = InferResponse("m", {}, "3", None, {"generation": 3, "snapshots": "a=1", "region": "here"})


def outputs_of(rows, value, *, text=b"t"):
    return {
        "y": Tensor("FP32", np.full((rows, 2), value, np.float32)),
        "label": Tensor("BYTES", np.array([text] * rows, object)),
    }


@given(
    st.sets(st.sampled_from(["y", "label"])),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1.5, -2.0]), st.sampled_from([b"a", b"long"])), min_size=1),
    st.sampled_from([("y",), ("label",), ("y", "label"), ("label", "y")]),
)
def test_answers_are_those_of_the_codec(binary, answers, chosen):
    form = AnswerForm(HEAD, chosen, binary)
    for rows, value, text in answers:
        outputs = outputs_of(rows, value, text=text)
        whole = InferResponse("m", {name: outputs[name] for name in chosen}, "3", None, HEAD.parameters)
        assert form.encode(outputs) == (encode_response(whole, binary=binary), True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 3])
def test_numbers_that_are_none_are_told_in_binary_and_refused_in_json(rows, value):
    outputs = {"y": Tensor("FP32", np.zeros((rows, 1), np.float32))}
    form = AnswerForm(HEAD, ("y",), {"y"})
    assert form.encode(outputs)[1]
    outputs["y"].data[-1] = value
    encoded, finite = form.encode(outputs)
    assert not finite
    assert encoded.body.endswith(outputs["y"].data.tobytes())
    with pytest.raises(IPnextError, match="NaN or infinity"):
        AnswerForm(HEAD, ("y",), ()).encode(outputs)


def test_a_form_is_found_again_for_the_same_thing_only():
    forms, made = AnswerForms(), []

    def make():
        made.append(AnswerForm(HEAD, ("y",), ()))
        return made[-1]

    plain, asking = InferRequest({}), InferRequest({}, (RequestedOutput("y", binary=True),))
    named = InferRequest({}, id="a")
    first = forms.of(plain, ("m", 1), make)
    assert forms.of(InferRequest({}), ("m", 1), make) is first
    assert forms.of(plain, ("m", 2), make) is not first
    assert forms.of(asking, ("m", 1), make) is not first
    assert forms.of(named, ("m", 1), make) is not forms.of(named, ("m", 1), make)
    assert len(made) == 5
