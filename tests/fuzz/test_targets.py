"""The fuzz targets take their own seeds, and bytes at random; `make fuzz` does this for longer and follows branches."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.trust


def loaded(name):
    """A module of this folder; it is no package, since atheris imports its modules by themselves."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run, targets, documents = loaded("run"), loaded("targets"), loaded("documents")
SEEDS = targets.SEEDS | documents.SEEDS
TARGETS = {target.__name__: target for target in SEEDS}


def test_make_fuzz_runs_every_target():
    assert {*run.CODECS, *run.DOCUMENTS} == TARGETS.keys()


def test_a_good_seed_of_what_proves_something_is_taken():
    documents._CALLERS.prove(documents._KEY)
    documents._CALLERS.prove(documents._TOKEN)
    assert documents.check_signature(documents._POLICY, documents._DIGEST, documents._SIGNATURE, "it").startswith(
        "signed"
    )
    entries = documents._entries(3).partition(b"\n=\n")[0].splitlines()
    assert documents.verify(documents.read_entries(entries)).fault is None


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_target_takes_its_seeds_and_what_is_near_them(name, data):
    target = TARGETS[name]
    seed = bytearray(data.draw(st.sampled_from(SEEDS[target])))
    target(bytes(seed))
    at = data.draw(st.integers(0, len(seed)))
    seed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    target(bytes(seed))
