"""Reading a request by what an earlier one with the same header was found to say gives what reading it anew gives."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.errors import InvalidInput
from serving.protocol.request_templates import FORMS_KEPT, FormsSeen, RequestForms
from serving.protocol.tensors import DTYPES, Tensor
from serving.protocol.v2 import InferRequest, RequestedOutput, decode_request, encode_request


def request_of(batch, fill, *, datatype="FP32", width=3, identity=None, name="x"):
    data = np.full((batch, width), fill).astype(DTYPES[datatype])
    return encode_request(InferRequest({name: Tensor(datatype, data)}, (RequestedOutput("y", binary=True),), identity))


def read(forms, encoded):
    return forms.read(bytearray(encoded.body), encoded.header_length)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 1),
            st.sampled_from(["FP32", "INT64", "BOOL", "BF16", "UINT8"]),
            st.sampled_from([None, "a"]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_a_request_reads_the_same_whatever_came_before_it(asked):
    forms = RequestForms()
    for batch, fill, datatype, identity in asked:
        encoded = request_of(batch, fill, datatype=datatype, identity=identity)
        got, expected = read(forms, encoded), decode_request(bytearray(encoded.body), encoded.header_length)
        assert (got.id, got.outputs, got.parameters) == (expected.id, expected.outputs, expected.parameters)
        assert got.inputs["x"].datatype == expected.inputs["x"].datatype
        assert np.array_equal(got.inputs["x"].data, expected.inputs["x"].data)
        assert got.inputs["x"].shape == expected.inputs["x"].shape


def test_requests_that_differ_in_their_numbers_only_have_one_form_and_others_another():
    forms = RequestForms()
    first, again, larger = (read(forms, request_of(*asked)) for asked in ((2, 1), (2, 5), (3, 1)))
    assert first.form is not None
    assert again.form is first.form
    assert larger.form is not first.form
    assert again.inputs["x"].data.tolist() == [[5.0] * 3] * 2


def test_an_array_of_a_known_form_lies_in_its_own_request():
    forms = RequestForms()
    read(forms, request_of(2, 1))
    body = bytearray(request_of(2, 7).body)
    array = forms.read(body, request_of(2, 7).header_length).inputs["x"].data
    array[0, 0] = 9
    assert np.frombuffer(body[-24:], np.float32).tolist() == [9, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("change", ["cut", "longer"])
def test_a_known_header_before_other_bytes_than_it_states_is_refused_as_ever(change):
    forms = RequestForms()
    encoded = request_of(2, 1)
    read(forms, encoded)
    body = bytearray(encoded.body[:-1] if change == "cut" else encoded.body + b"x")
    with pytest.raises(InvalidInput, match="bytes"):
        forms.read(body, encoded.header_length)


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param([request_of(2, 1, identity="a").body] * 2, id="an id"),
        pytest.param([request_of(0, 1).body] * 2, id="an empty tensor"),
        pytest.param([request_of(2, 1, datatype="BOOL").body] * 2, id="values to check"),
    ],
)
def test_what_differs_from_request_to_request_has_no_form(bodies):
    forms = RequestForms()
    for body in bodies:
        assert forms.read(bytearray(body), body.index(b"}]}") + 3 + -(body.index(b"}]}") + 3) % 8).form is None


def test_data_inside_the_header_is_read_each_time():
    forms = RequestForms()
    in_json = {"name": "x", "datatype": "INT64", "shape": [1], "data": [4]}
    behind = {"name": "z", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}}
    header = json.dumps({"inputs": [in_json, behind]}).encode()
    for number in (1, 2):
        read_one = forms.read(bytearray(header + number.to_bytes(8, "little")), len(header))
        assert (read_one.form, read_one.inputs["x"].data[0], read_one.inputs["z"].data[0]) == (None, 4, number)


def test_a_wrong_value_of_a_bool_is_seen_after_a_right_one():
    forms = RequestForms()
    encoded = request_of(1, 1, datatype="BOOL")
    read(forms, encoded)
    with pytest.raises(InvalidInput, match="BOOL"):
        forms.read(bytearray(encoded.body[:-1] + b"\x07"), encoded.header_length)


def test_only_so_many_forms_are_kept():
    forms = RequestForms()
    first = read(forms, request_of(1, 1, name="first")).form
    for number in range(FORMS_KEPT):
        read(forms, request_of(1, 1, name=f"n{number}"))
    assert read(forms, request_of(1, 1, name="first")).form is not first


def test_what_depends_on_the_form_is_checked_until_a_request_of_the_form_has_passed():
    forms, seen, checked = RequestForms(), FormsSeen(), []
    right, other = read(forms, request_of(2, 1)), read(forms, request_of(3, 1))

    def refuse():
        checked.append("refused")
        msg = "no"
        raise InvalidInput(msg)

    for _ in range(2):
        with pytest.raises(InvalidInput):
            seen.check(right, refuse)
    seen.check(right, lambda: checked.append("passed"))
    seen.check(right, refuse)
    assert checked == ["refused", "refused", "passed"]
    for request in (other, InferRequest({})):
        with pytest.raises(InvalidInput):
            seen.check(request, refuse)
