"""Prompts made of tensors, and bodies made of prompts."""

import numpy as np
import pytest

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import TensorSpec
from ipnext.model.settings.prompt import PromptTemplate
from serving.openai.prompt.prompt_builder import CHAT_PATH, COMPLETIONS_PATH, compose_prompt, extract_prompt, with_text
from serving.openai.prompt.request_inputs import read_inputs
from serving.protocol.response_templates import NotFinite
from serving.protocol.tensors import Tensor, float32_to_bf16


def texts(*given):
    return Tensor("BYTES", np.array([text.encode() for text in given], np.object_))


def numbers(*given, datatype="FP32", dtype=np.float32):
    return Tensor(datatype, np.array(given, dtype))


def prompt(template="{documents}{prompt}", item="[{number}] {text};", **more):
    return PromptTemplate(template=template, lists={"documents": {"item": item, **more}})


TENSORS = {"prompt": texts("why?"), "text": texts("a", "b", "c"), "score": numbers(0.5, 0.75, 0.5)}


def test_a_list_is_ordered_by_falling_number_cut_and_numbered():
    assert compose_prompt(prompt(order="score"), TENSORS) == "[1] b;[2] a;[3] c;why?"
    assert compose_prompt(prompt(order="score", top=2), TENSORS) == "[1] b;[2] a;why?"
    assert compose_prompt(prompt(top=1), TENSORS) == "[1] a;why?"


def test_numbers_are_written_short():
    tensors = {
        **TENSORS,
        "half": Tensor("BF16", float32_to_bf16(np.array([0.5, 1.5, 2.5], np.float32))),
        "count": numbers(3, 2, 1, datatype="INT64", dtype=np.int64),
        "good": numbers(True, False, True, datatype="BOOL", dtype=np.bool_),
        "score": numbers(0.1, 1e9, -3.0),
    }
    item = "{text} {half} {count} {good} {score};"
    assert (
        compose_prompt(prompt("{documents}|{prompt}", item), tensors)
        == "a 0.5 3 true 0.1;b 1.5 2 false 1e+09;c 2.5 1 true -3;|why?"
    )
    assert compose_prompt(prompt(item="{text}", order="half"), tensors) == "cbawhy?"


def test_what_is_put_into_a_place_is_never_read_as_a_template():
    tensors = {
        "prompt": texts("{text} {0} {{x}} {prompt.__class__}"),
        "text": texts("{prompt}", "}{"),
        "score": numbers(1, 2),
    }
    assert compose_prompt(prompt(order="score"), tensors) == "[1] }{;[2] {prompt};{text} {0} {{x}} {prompt.__class__}"


def test_an_input_of_one_element_has_a_place_in_the_template():
    one = PromptTemplate(template="In {country}: {prompt}")
    assert compose_prompt(one, {"prompt": texts("why?"), "country": texts("Peru")}) == "In Peru: why?"
    with pytest.raises(InvalidInput, match="one element of 'country', got 2"):
        compose_prompt(one, {"prompt": texts("why?"), "country": texts("Peru", "Chile")})


@pytest.mark.parametrize(
    ("changed", "fault", "text"),
    [
        ({"score": numbers(1, 2)}, InvalidInput, "equally many elements, got score: 2, text: 3"),
        ({"score": numbers(1, np.nan, 2)}, NotFinite, "'score', by which the prompt orders a list, holds NaN"),
        ({"score": numbers([1], [2], [3])}, InvalidInput, r"takes 'score' as a list, got shape \[3, 1\]"),
    ],
)
def test_tensors_that_make_no_list_are_refused(changed, fault, text):
    with pytest.raises(fault, match=text):
        compose_prompt(prompt(order="score"), {**TENSORS, **changed})


CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second", "name": "ann"},
        {"role": "assistant", "content": "so"},
    ],
}


def test_the_last_message_of_the_user_is_replaced():
    assert extract_prompt(CHAT_PATH, CHAT) == "second"
    changed = with_text(CHAT_PATH, CHAT, "composed")
    assert [message["content"] for message in changed["messages"]] == ["be short", "first", "yes", "composed", "so"]
    assert changed["messages"][3]["name"] == "ann"
    assert CHAT["messages"][3]["content"] == "second", "the body that was given stays as it is"


def test_pictures_stay_where_they_stand_beside_the_text():
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    content = [picture, {"type": "text", "text": "what"}, picture, {"type": "text", "text": "is it?"}]
    body = {"messages": [{"role": "user", "content": content}]}
    assert extract_prompt(CHAT_PATH, body) == "what\nis it?"
    assert with_text(CHAT_PATH, body, "new")["messages"][0]["content"] == [
        picture,
        {"type": "text", "text": "new"},
        picture,
    ]


def test_a_completion_has_one_text():
    for given in ("once", ["once"]):
        assert extract_prompt(COMPLETIONS_PATH, {"prompt": given}) == "once"
    assert with_text(COMPLETIONS_PATH, {"prompt": ["once"], "n": 2}, "new") == {"prompt": "new", "n": 2}


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (COMPLETIONS_PATH, {}, "prompt: must be one text"),
        (COMPLETIONS_PATH, {"prompt": ["a", "b"]}, "prompt: must be one text"),
        (COMPLETIONS_PATH, {"prompt": [1, 2, 3]}, "prompt: must be one text"),
        (CHAT_PATH, {}, "messages: must be a list, got a NoneType"),
        (CHAT_PATH, {"messages": []}, "messages: none is of role user"),
        (CHAT_PATH, {"messages": ["user"]}, "messages: none is of role user"),
        (CHAT_PATH, {"messages": [{"role": "user", "content": ["x"]}]}, "messages: none is of role user"),
        (CHAT_PATH, {"messages": [{"role": "user"}]}, "messages: none is of role user"),
        (CHAT_PATH, {"messages": [{"role": "assistant", "content": "x"}]}, "messages: none is of role user"),
    ],
)
def test_a_body_without_a_text_is_refused_by_field(path, body, text):
    with pytest.raises(InvalidInput, match=text):
        extract_prompt(path, body)


SPECS = (
    TensorSpec(name="documents", datatype="BYTES", shape=(-1,)),
    TensorSpec(name="features", datatype="FP32", shape=(-1, 2)),
)


def test_inputs_are_read_by_their_declared_types():
    found = read_inputs({"inputs": {"documents": ["a", "ä"], "features": [[1, 2], [3, 4.5]]}}, SPECS)
    assert found["documents"].data.tolist() == [b"a", "ä".encode()]
    assert (found["features"].datatype, found["features"].data.dtype) == ("FP32", np.float32)
    assert found["features"].data.tolist() == [[1, 2], [3, 4.5]]
    assert read_inputs({}, ()) == {}


@pytest.mark.parametrize(
    ("given", "field", "text"),
    [
        (None, "inputs", "must be an object of lists .documents BYTES.*, got a NoneType"),
        ({"documents": ["a"]}, "inputs.features", "missing; this model takes: documents BYTES"),
        ({"documents": ["a"], "features": [[1, 2]], "more": []}, "inputs.more", "no such input"),
        (
            {"documents": "a", "features": [[1, 2]]},
            "inputs.documents",
            r"must be a list of texts \(BYTES\[-1\]\), got a str",
        ),
        ({"documents": [["a"]], "features": [[1, 2]]}, "inputs.documents", r"got shape \[1, 1\]"),
        ({"documents": [], "features": [[1, 2]]}, "inputs.documents", "at least one element"),
        ({"documents": ["a", 1], "features": [[1, 2]]}, "inputs.documents", "must be strings, got 1"),
        (
            {"documents": ["a"], "features": [[1, 2, 3]]},
            "inputs.features",
            r"must be FP32\[-1, 2\] as nested lists, got shape \[1, 3\]",
        ),
        ({"documents": ["a"], "features": [[1, 2], [3]]}, "inputs.features", "rows of one length"),
        ({"documents": ["a"], "features": [[1, "2"]]}, "inputs.features", "must be numbers, got '2'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_field(given, field, text):
    with pytest.raises(InvalidInput, match=text) as refused:
        read_inputs({"inputs": given}, SPECS)
    assert refused.value.field == field
