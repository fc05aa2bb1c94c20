"""The fuzz targets take their own seeds, and bytes at random; `make fuzz` does this for longer and follows branches."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

_SPEC = importlib.util.spec_from_file_location("fuzz_targets", Path(__file__).with_name("targets.py"))
targets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(targets)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_target_takes_its_seeds_and_what_is_near_them(name, data):
    target = targets.TARGETS[name]
    seed = bytearray(data.draw(st.sampled_from(targets.SEEDS[target])))
    target(bytes(seed))
    at = data.draw(st.integers(0, len(seed)))
    seed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    target(bytes(seed))
