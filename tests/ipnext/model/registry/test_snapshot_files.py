"""The files that a snapshot of each engine may have."""

import pytest

from ipnext.artifacts.checkpoints.checkpoint_import import DATA_SUFFIXES
from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest
from ipnext.model.registry.snapshot_files import ENGINE_FILES, OTHER_FILES, check_files

EXPORT = ("program.json", "weights.safetensors")


def snapshot(*paths, engine="torch"):
    files = tuple(ArtifactFile(path=path, sha256="0" * 64, size_bytes=1) for path in paths)
    return SnapshotManifest(engine=engine, signature=Signature(inputs=(), outputs=()), files=files)


@pytest.mark.parametrize(
    "paths",
    [
        EXPORT,
        (*EXPORT, "library.so", "library.json", "compiled.json"),
        ("delta.json", "delta.safetensors"),
        (*EXPORT, "replay.safetensors"),
        (*EXPORT, "optimization.json"),
        (*EXPORT, "README.md", "LICENSE.txt", "notes/data.md"),
    ],
)
def test_what_torch_writes_and_a_few_texts_are_files_of_its_snapshots(paths):
    check_files(snapshot(*paths), ENGINE_FILES["torch"])


@pytest.mark.parametrize(
    "paths",
    [
        ("config.json", "model.safetensors", "tokenizer.json", "merges.txt", "chat_template.jinja"),
        ("config.json", "model.safetensors.index.json", *(f"model-{n:05d}-of-00191.safetensors" for n in range(191))),
        ("adapter_config.json", "adapter_model.safetensors", "README.md"),
        ("config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"),
        (
            "config.json",
            "consolidated.safetensors",
            "params.json",
            "tekken.json",
            "tokenizer.model",
            "original/params.json",
        ),
    ],
)
def test_published_checkpoints_and_adapters_are_snapshots_of_vllm(paths):
    check_files(snapshot(*paths, engine="vllm"), ENGINE_FILES["vllm"])


@pytest.mark.parametrize("suffix", sorted(DATA_SUFFIXES))
def test_what_an_import_takes_from_a_checkpoint_may_be_published(suffix):
    check_files(snapshot("model.safetensors", f"folder/file{suffix}", engine="vllm"), ENGINE_FILES["vllm"])


@pytest.mark.parametrize("path", ["weights.bin", "library.SO", "sub/program.json", "other.json", "more.safetensors"])
def test_a_foreign_file_is_refused_with_those_that_are_allowed(path):
    with pytest.raises(InvalidInput) as refused:
        check_files(snapshot(*EXPORT, path), ENGINE_FILES["torch"])
    assert (refused.value.field, refused.value.value) == ("files.path", path)
    assert refused.value.allowed == (
        *("program.json", "weights.safetensors", "library.so", "library.json", "compiled.json"),
        *("delta.json", "delta.safetensors", "replay.safetensors", "golden.json", "optimization.json"),
        *("64 of *.txt", "32 of *.md"),
    )
    assert (
        f"{path!r} is no file of such a snapshot; allowed for engine 'torch': program.json, " in refused.value.message
    )


@pytest.mark.parametrize(
    ("engine", "pattern", "most"), [("torch", "*.txt", 64), ("vllm", "*.txt", 64), ("vllm", "*.json", 128)]
)
def test_names_of_one_pattern_are_bounded_in_number(engine, pattern, most):
    names = [pattern.replace("*", f"n/{number}") for number in range(most + 1)]
    check_files(snapshot(*names[:-1], engine=engine), ENGINE_FILES[engine])
    with pytest.raises(InvalidInput, match=r"is one file of \*\.\w+ too many") as refused:
        check_files(snapshot(*names, engine=engine), ENGINE_FILES[engine])
    assert refused.value.value == names[-1]


def test_an_engine_without_a_set_has_any_files_but_few():
    check_files(snapshot(*(f"{n}.any" for n in range(64)), engine="mine"), OTHER_FILES)
    with pytest.raises(InvalidInput, match="allowed for engine 'mine': 64 of"):
        check_files(snapshot(*(f"{n}.any" for n in range(65)), engine="mine"), OTHER_FILES)
