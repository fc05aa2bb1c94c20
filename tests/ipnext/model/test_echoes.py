"""What errors repeat of a client's text is cut."""

import tracemalloc

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.echoes import cut_text, join_steps, show_value
from serving.http.messages import error_response
from serving.protocol.v2 import decode_request


def test_a_text_is_cut_to_the_characters_it_may_have():
    assert cut_text("abcdef", 6) == "abcdef"
    assert cut_text("abcdefg", 6) == "abc..."


def test_a_place_is_cut_however_long_its_steps_are():
    assert join_steps(["messages", 0, "url"]) == "messages.0.url"
    assert len(join_steps(["k" * 2**20, 1] * 3)) == 200


@pytest.mark.parametrize("value", [3, 1.5, None, True, "a'b", [1, [2, "c"]], {"b": [1], "a": {"c": None}}])
def test_a_small_value_is_shown_whole(value):
    assert show_value(value) == repr(value)


@pytest.mark.parametrize(
    "value", [[1] * 2**20, {str(n): n for n in range(2**18)}, "x" * 2**22, [[["y" * 2**22] * 20] * 20] * 20]
)
def test_of_a_large_value_only_the_first_members_are_read(value):
    tracemalloc.start()
    try:
        shown = show_value(value)
        assert tracemalloc.get_traced_memory()[1] < 2**21  # other threads of the process allocate, too
    finally:
        tracemalloc.stop()
    assert len(shown) <= 80
    assert shown[0] in "[{'"


@pytest.mark.parametrize(
    "entry",
    [
        '{"name": "TEXT", "datatype": "none"}',
        '{"name": "TEXT", "parameters": 1}',
        '{"name": [["TEXT"]]}',
        '{"name": "x", "datatype": "FP32", "shape": ["TEXT"]}',
        '{"name": "x", "datatype": "FP32", "shape": [1], "data": "TEXT"}',
    ],
)
def test_a_refusal_of_a_v2_request_is_short(entry):
    body = f'{{"inputs": [{entry}]}}'.replace("TEXT", "t" * 2**20).encode()
    with pytest.raises(InvalidInput) as refused:
        decode_request(body)
    assert len(error_response(refused.value).body) < 5000
