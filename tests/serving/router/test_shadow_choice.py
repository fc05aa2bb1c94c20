"""Which requests are mirrored: the same ones in each router, and as many as the share says."""

import pytest

from serving.http.messages import Request
from serving.router.shadow_choice import chooses


def of_body(number, size=0):
    return Request("POST", "/v2/models/m/infer", {}, bytearray(f'{{"id": {number}}}'.encode() + b" " * size))


def of_id(number):
    return Request("POST", "/v2/models/m/infer", {"x-request-id": f"request-{number}"}, bytearray(b"{}"))


@pytest.mark.parametrize("make", [of_body, of_id])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_share_of_requests_is_chosen(make, share):
    count = 20_000
    chosen = sum(chooses(make(number), share=share, seed=3) for number in range(count))
    assert abs(chosen - share * count) < 5 * (count * share * (1 - share)) ** 0.5


def test_all_or_none_have_no_exceptions():
    assert all(chooses(of_body(number), share=1.0, seed=3) for number in range(1000))


def test_the_choice_follows_from_request_and_seed_alone():
    requests = [of_body(number) for number in range(200)]
    first, again, other = ([chooses(request, share=0.5, seed=seed) for request in requests] for seed in (1, 1, 2))
    assert first == again != other
    larger = [chooses(request, share=0.7, seed=1) for request in requests]
    assert all(more for more, less in zip(larger, first, strict=True) if less), "a larger share has the smaller one"


def test_a_large_body_is_told_by_its_ends_and_its_length():
    wide = 10**5
    assert {chooses(of_body(1, wide + more), share=0.5, seed=1) for more in range(64)} == {True, False}
