"""The setting `routing` of a part: for the router, not for the host."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.settings.engine import vllm_settings
from ipnext.model.settings.routing import host_settings, routing_policy


def test_a_policy_is_read_from_the_settings_of_an_engine_that_serves_by_itself():
    assert routing_policy({"routing": {"policy": "round-robin"}}) == "round-robin"
    assert routing_policy({"routing": {}}) == "prefix"
    assert routing_policy({}) is None


@pytest.mark.parametrize("given", [{"policy": "random"}, {"polcy": "prefix"}, "prefix"])
def test_another_policy_is_refused_by_its_field(given):
    with pytest.raises(InvalidInput, match=r"settings\.routing"):
        routing_policy({"routing": given})


def test_the_settings_of_a_vllm_part_may_have_it():
    assert vllm_settings({"routing": {"policy": "least-loaded"}, "maxModelLen": 8}).max_model_len == 8
    with pytest.raises(ValueError, match=r"settings\.routing\.policy"):
        vllm_settings({"routing": {"policy": "random"}})


def test_the_host_never_sees_it_so_that_another_policy_loads_nothing_anew():
    assert host_settings({"routing": {"policy": "prefix"}, "maxModelLen": 8}) == {"maxModelLen": 8}
