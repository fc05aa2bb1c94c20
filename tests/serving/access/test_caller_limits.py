"""Limits of requests: for each key, and for all keys of an owner."""

import json

from ipnext.model.access.predictions import (
    AccessSpec,
)
from serving.http.messages import error_response
from serving.openai.errors import openai_error


def limited(**limits):
    return AccessSpec.model_validate({"predictions": "authenticated", "limits": limits})


def test_a_key_that_asks_too_often_is_told_when_to_come_back(world):
    world.accesses["secret"] = ("ads", limited(perKey={"requestsPerSecond": 0.5, "burst": 2}))
    key, other = world.key(), world.key()
    assert [world.status("secret", key) for _ in range(3)] == [200, 200, 429]
    assert world.status("secret", other) == 200, "a bucket of its own"
    refused = world.ask("secret", key)
    assert refused.reason == "rate_limited"
    for form in (error_response, openai_error):
        assert form(refused.error).headers["retry-after"] == "2"
    assert json.loads(openai_error(refused.error).body)["error"]["type"] == "RateLimitError"
    world.clock.now += 2.01
    assert [world.status("secret", key) for _ in range(2)] == [200, 429]


def test_keys_of_one_owner_share_the_owners_limit_and_other_owners_have_their_own(world):
    spec = limited(perOwner={"requestsPerSecond": 1, "burst": 2}).model_copy(update={"callers": ("search",)})
    world.accesses["secret"] = ("ads", spec)
    first, second, foreign = world.key(), world.key(), world.key(owner="search")
    asked = [world.status("secret", key) for key in (first, second, first, foreign, foreign, foreign)]
    assert asked == [200, 200, 429, 200, 200, 429]


def test_a_new_list_does_not_fill_the_buckets(world):
    world.accesses["secret"] = ("ads", limited(perKey={"requestsPerSecond": 0.1, "burst": 1}))
    key = world.key()
    assert world.status("secret", key) == 200
    world.key()
    assert world.status("secret", key) == 429
