"""Memory of a replica: by the snapshot's manifests, against the part's limit and the fleet's units, for each kind."""

from dataclasses import replace

import pytest

from activities.validation.memory import check_memory
from ipnext.model.deployment.footprint import PROCESS_BYTES, needed_bytes
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.delta import DELTA_FILES
from ipnext.model.registry.registry import ArtifactFile

GB = 10**9


def parts(**dense):
    cpu = {"kind": "cpu", "units": 1, "qps": 100}
    return {"parts": [{"name": "sparse", "hardware": [cpu]}, {"name": "dense", "hardware": [cpu], **dense}]}


TWO_KINDS = [{"kind": "cpu", "units": 1, "qps": 100}, {"kind": "gpu", "units": 0.5, "qps": 900}]


def check(candidate, **memory_bytes):
    """Return the result of the part dense."""
    return next(r for r in check_memory(replace(candidate, memory_bytes=memory_bytes)) if r.subject == "dense")


def needed(candidate):
    return PROCESS_BYTES + needed_bytes(candidate.snapshots["dense"].manifest)


def test_without_limits_everything_fits_and_the_need_is_told(candidate):
    given = candidate(spec=parts())
    found = check(given)
    assert (found.passed, found.message) == (True, "fits cpu")
    assert found.evidence["kinds"]["cpu"] == {
        "neededBytes": needed(given), "availableBytes": None, "limit": None, "fits": True,
    }  # fmt: skip


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_a_part_fits_its_own_limit_to_the_byte(candidate, spare, fits):
    need = needed(candidate(spec=parts()))
    found = check(candidate(spec=parts(memoryBytes=need + spare)))
    assert found.passed is fits
    if not fits:
        assert found.reason is Reason.OUT_OF_MEMORY
        told = f"cpu: needs {need:,} bytes, has {need - 1:,} (memoryBytes of the part)"
        assert found.message == f"fits no hardware kind of the part: {told}"


def test_each_kind_is_judged_by_its_units_and_one_that_fits_is_enough(candidate):
    given = candidate(spec=parts(hardware=TWO_KINDS))
    found = check(given, cpu=8 * GB, gpu=GB // 2)
    assert found.passed
    assert {kind: each["fits"] for kind, each in found.evidence["kinds"].items()} == {"cpu": True, "gpu": False}
    assert found.message.startswith("fits cpu; not gpu: needs ")
    assert found.message.endswith("has 250,000,000 (0.5 units of the fleet's memoryBytes)")
    assert not check(given, cpu=GB // 4, gpu=GB // 2).passed
    assert check(given, cpu=GB // 4).passed, "the memory of gpu is not known"


def test_the_tighter_limit_counts(candidate):
    assert check(candidate(spec=parts(memoryBytes=8 * GB)), cpu=8 * GB).passed
    assert not check(candidate(spec=parts(memoryBytes=8 * GB)), cpu=GB // 4).passed
    assert not check(candidate(spec=parts(memoryBytes=GB // 4)), cpu=8 * GB).passed


def test_what_an_optimization_derives_is_not_judged_by_its_source(candidate):
    step = {"quantize": {"part": "dense", "embeddings": "int8"}}
    found = check(candidate(spec=parts(memoryBytes=1) | {"optimization": [step]}))
    assert (found.outcome.value, found.message) == ("skipped", "hosts load what spec.optimization derives from it")


def test_each_kind_is_judged_by_what_was_derived_for_it(candidate):
    step = {"quantize": {"part": "dense", "embeddings": "int8", "hardware": ["gpu"]}}
    given = candidate(spec=parts(hardware=TWO_KINDS) | {"optimization": [step]})
    whole = given.snapshots["dense"]
    files = [file.model_copy(update={"size_bytes": file.size_bytes + GB}) for file in whole.manifest.files]
    larger = whole.model_copy(update={"manifest": whole.manifest.model_copy(update={"files": tuple(files)})})
    derived = {("dense", "cpu"): whole, ("dense", "gpu"): larger}
    found = check(replace(given, derived=derived), cpu=8 * GB, gpu=4 * GB)
    assert {kind: each["fits"] for kind, each in found.evidence["kinds"].items()} == {"cpu": True, "gpu": False}
    assert found.evidence["kinds"]["cpu"]["neededBytes"] == needed(given)
    assert check(given).outcome.value == "skipped"


def test_a_delta_needs_what_it_is_applied_to_and_its_own_rows(candidate):
    full = candidate(spec=parts())
    base = full.snapshots["dense"]
    files = [ArtifactFile(path=path, sha256="0" * 64, size_bytes=1000) for path in sorted(DELTA_FILES)]
    delta = base.manifest.model_copy(update={"parent": base.digest, "files": tuple(files)})
    newest = base.model_copy(update={"manifest": delta, "number": 2})
    given = replace(full, snapshots={**full.snapshots, "dense": newest}, published={("dense", base.digest): base})
    assert check(given).evidence["kinds"]["cpu"]["neededBytes"] == needed(full) + 1000
