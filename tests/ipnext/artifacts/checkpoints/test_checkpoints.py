"""Checkpoints become snapshots by their configuration and headers alone; what does not fit is named by its tensor."""

import json

import numpy as np
import pytest

from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint, import_checkpoint
from ipnext.artifacts.checkpoints.reader import MOST_DIMENSIONS, LocalFiles, read_checkpoint
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import InvalidInput
from ipnext.model.registry.checkpoint import Checkpoint, unfit_settings
from ipnext.model.registry.registry import Signature, SnapshotManifest
from ipnext.model.settings.engine import VllmSettings
from ipnext.model.value import canonical_json, digest_of
from tests.genai.support.checkpoints import llama_tensors, write_adapter, write_bert, write_llama

pytestmark = pytest.mark.trust


def test_a_checkpoint_becomes_a_snapshot_that_a_store_takes(tmp_path):
    imported = import_checkpoint(write_llama(tmp_path / "hf"), tmp_path / "out")
    source = ingest_directory(FileArtifactStore(tmp_path / "store"), tmp_path / "out")
    assert source.manifest == imported.manifest
    assert source.manifest.engine == "vllm"
    assert [spec.name for spec in source.manifest.signature.outputs] == ["text"]
    facts = source.manifest.checkpoint
    assert (facts.architecture, facts.dtype, facts.positions, facts.heads) == ("LlamaForCausalLM", "F32", 64, 4)
    assert facts.parameters == sum(tensor.size for tensor in llama_tensors().values())


def test_the_form_of_the_tensors_has_a_digest_of_its_own(tmp_path):
    first = describe_checkpoint(write_llama(tmp_path / "a", seed=1)).manifest
    other_weights = describe_checkpoint(write_llama(tmp_path / "b", seed=2)).manifest
    sharded = describe_checkpoint(write_llama(tmp_path / "c", seed=1, shards=3)).manifest
    less = {name: tensor for name, tensor in llama_tensors().items() if name != "lm_head.weight"}
    tied = describe_checkpoint(write_llama(tmp_path / "d", tensors=less)).manifest
    assert first.digest != other_weights.digest
    assert first.checkpoint.tensors == other_weights.checkpoint.tensors == sharded.checkpoint.tensors
    assert first.checkpoint.tensors != tied.checkpoint.tensors


def test_an_embedding_model_gives_vectors_of_its_size(tmp_path):
    manifest = describe_checkpoint(write_bert(tmp_path / "hf")).manifest
    (output,) = manifest.signature.outputs
    assert (output.name, output.datatype, output.shape) == ("embedding", "FP32", (-1, 4))
    assert "1_Pooling/config.json" in {file.path for file in manifest.files}


def test_an_adapter_tells_its_base_and_rank(tmp_path):
    facts = describe_checkpoint(write_adapter(tmp_path / "lora")).manifest.checkpoint
    assert (facts.kind, facts.base, facts.rank) == ("adapter", "chat", 2)
    with pytest.raises(InvalidInput, match=r"lora_A.*rank 3"):
        describe_checkpoint(write_adapter(tmp_path / "other", rank=3))


def test_only_what_serving_needs_is_taken_and_the_rest_is_told(tmp_path):
    directory = write_llama(tmp_path / "hf")
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (directory / "modeling.py").write_text("print()")
    (directory / ".cache").mkdir()
    (directory / ".cache" / "a.json").write_text("{}")
    imported = import_checkpoint(directory, tmp_path / "out")
    assert list(imported.left_out) == [".cache/a.json", "modeling.py", "pytorch_model.bin"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "snapshot.json",
        "tokenizer.json",
    ]


def test_links_share_the_bytes(tmp_path):
    directory = write_llama(tmp_path / "hf")
    import_checkpoint(directory, tmp_path / "out", link=True)
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).stat().st_ino == (directory / weights).stat().st_ino


def test_a_snapshot_is_never_overwritten_and_nothing_half_written_stays(tmp_path):
    directory = write_llama(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InvalidInput, match="never overwritten"):
        import_checkpoint(directory, tmp_path / "out")
    (directory / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InvalidInput):
        import_checkpoint(directory, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_pickled_weights_are_refused(tmp_path):
    directory = write_llama(tmp_path / "hf")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=r"pytorch_model.bin.*refused"):
        describe_checkpoint(directory)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_checkpoint_that_would_bring_python_classes_is_refused(tmp_path, file):
    directory = write_llama(tmp_path / "hf")
    before = json.loads((directory / file).read_bytes()) if (directory / file).exists() else {}
    (directory / file).write_text(json.dumps({**before, "auto_map": {"AutoModel": "modeling.Model"}}))
    with pytest.raises(InvalidInput, match=rf"{file}: auto_map names Python classes"):
        describe_checkpoint(directory)


def test_a_checkpoint_that_names_another_model_is_refused(tmp_path):
    """vLLM would serve what the field names, which nothing here has looked at."""
    directory = write_llama(tmp_path / "hf")
    config = json.loads((directory / "config.json").read_bytes())
    config["speculators_config"] = {"verifier": {"name_or_path": "/srv/other"}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match=r"config.json: speculators_config names another model"):
        describe_checkpoint(directory)


def changed(name, shape):
    return llama_tensors() | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("tensors", "config", "told"),
    [
        (changed("model.embed_tokens.weight", (12, 8)), {}, r"embed_tokens.weight' has shape \[12, 8\].*\[11, 8\]"),
        (changed("model.layers.1.self_attn.k_proj.weight", (8, 8)), {}, r"layers.1.self_attn.k_proj.*\[4, 8\]"),
        (changed("model.layers.0.mlp.down_proj.weight", (8, 11)), {}, r"mlp.down_proj.*\[8, 12\]"),
        (None, {"num_hidden_layers": 3}, r"layer 2 has no tensor; config.json says 3 layers"),
        (None, {"num_hidden_layers": 1}, r"there is a layer 1; config.json says 1 layers"),
        (None, {"hidden_size": 16}, r"embed_tokens.weight' has shape \[11, 8\].*\[11, 16\]"),
        (None, {"architectures": None}, r"config.json: architectures is missing"),
        (None, {"hidden_size": "wide"}, r"config.json: hidden_size"),
        (None, {"num_hidden_layers": 10**9}, r"config.json: num_hidden_layers"),
        (None, {"hidden_size": 2**31}, r"config.json: hidden_size"),
    ],
)
def test_a_mismatch_is_named_by_its_tensor(tmp_path, tensors, config, told):
    with pytest.raises(InvalidInput, match=told):
        describe_checkpoint(write_llama(tmp_path / "hf", tensors=tensors, **config))


def test_a_missing_tensor_is_named(tmp_path):
    tensors = llama_tensors()
    del tensors["model.layers.0.self_attn.o_proj.weight"]
    with pytest.raises(InvalidInput, match=r"model.layers.0.self_attn.o_proj.weight' is missing"):
        describe_checkpoint(write_llama(tmp_path / "hf", tensors=tensors))


def remove_shard(directory, index):
    (directory / "model-00002-of-00003.safetensors").unlink()


def forget_a_tensor(directory, index):
    index["weight_map"].pop("lm_head.weight")


def name_one_more(directory, index):
    index["weight_map"]["model.more.weight"] = "model-00001-of-00003.safetensors"


def lead_outside(directory, index):
    index["weight_map"]["lm_head.weight"] = "../model.safetensors"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove_shard, r"model-00002-of-00003.safetensors: missing"),
        (forget_a_tensor, r"tensor 'lm_head.weight' is in it"),
        (name_one_more, r"has no tensor 'model.more.weight'"),
        (lead_outside, r"weight_map must name a file of this directory"),
    ],
)
def test_shards_and_their_index_agree(tmp_path, damage, told):
    directory = write_llama(tmp_path / "hf", shards=3)
    index_file = directory / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    damage(directory, index)
    index_file.write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match=told):
        describe_checkpoint(directory)


def test_several_files_of_weights_need_an_index(tmp_path):
    directory = write_llama(tmp_path / "hf", shards=2)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(InvalidInput, match="needed for several files"):
        describe_checkpoint(directory)


def test_a_truncated_file_is_refused(tmp_path):
    directory = write_llama(tmp_path / "hf")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InvalidInput, match="lies outside the file"):
        describe_checkpoint(directory)


def test_the_numbers_of_a_model_for_several_media_are_its_text_models(tmp_path):
    inner = {"hidden_size": 8, "vocab_size": 11, "max_position_embeddings": 99, "num_hidden_layers": 2}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner, "max_position_embeddings": None}
    facts = read_checkpoint(LocalFiles(write_llama(tmp_path / "hf", **outer))).facts
    assert (facts.positions, facts.architecture) == (99, "Gemma3ForConditionalGeneration")
    assert not facts.embeds


def facts(**changes):
    given = {"architecture": "LlamaForCausalLM", "dtype": "BF16", "parameters": 1, "tensors": "0" * 64}
    return Checkpoint(**(given | {"heads": 6, "positions": 64, "layers": 2} | changes))


@pytest.mark.parametrize(
    ("checkpoint", "settings", "told"),
    [
        (facts(), {"max_model_len": 65}, "maxModelLen: 65 is more than the 64 positions"),
        (facts(), {"tensor_parallel_size": 4}, "tensorParallelSize: 4 does not divide the 6 attention heads"),
        (facts(), {"pipeline_parallel_size": 3}, "pipelineParallelSize: 3 is more than the 2 layers"),
        (facts(architecture="BertModel"), {}, "BertModel embeds; write pooling"),
        (facts(kind="adapter", base="chat"), {}, "an adapter on chat"),
    ],
)
def test_settings_that_a_checkpoint_cannot_give_are_named(checkpoint, settings, told):
    (fault,) = unfit_settings(checkpoint, VllmSettings(**settings))
    assert told in fault


def test_settings_that_fit_are_fine():
    assert not list(unfit_settings(facts(), VllmSettings(max_model_len=64, tensor_parallel_size=3)))


def test_a_manifest_without_a_checkpoint_keeps_the_digest_that_it_had():
    manifest = SnapshotManifest(engine="torch", signature=Signature(inputs=(), outputs=()), files=())
    assert "checkpoint" not in canonical_json(manifest)
    former = (
        '{"engine":"torch","files":[],"format":"ipnext/snapshot/v1","parent":null,"producer":{},'
        '"signature":{"inputs":[],"outputs":[]}}'
    )
    assert manifest.digest == digest_of(json.loads(former))
    told = manifest.model_copy(update={"checkpoint": facts()})
    assert SnapshotManifest.model_validate_json(canonical_json(told)) == told


def test_a_tensor_of_a_checkpoint_has_at_most_eight_dimensions(tmp_path):
    shape = (1,) * MOST_DIMENSIONS
    read_checkpoint(LocalFiles(write_llama(tmp_path / "a", tensors={"a": np.zeros(shape, np.float32)})))
    with pytest.raises(InvalidInput, match=r"^model.safetensors: tensor 'a' has 9 dimensions; allowed: 8$"):
        read_checkpoint(LocalFiles(write_llama(tmp_path / "b", tensors={"a": np.zeros((1, *shape), np.float32)})))


def test_the_headers_of_a_checkpoint_are_bounded_together(tmp_path, monkeypatch):
    files = LocalFiles(write_llama(tmp_path / "hf", shards=3))
    read_checkpoint(files)
    monkeypatch.setattr("ipnext.artifacts.checkpoints.tensor_headers.MOST_HEADER_BYTES", 1000)
    with pytest.raises(InvalidInput, match=r"^model-0000[23].*those of the files before it have \d+ bytes together"):
        read_checkpoint(files)


def test_the_digest_of_the_forms_is_that_of_their_canonical_json(tmp_path):
    checkpoint = read_checkpoint(LocalFiles(write_llama(tmp_path / "hf")))
    forms = [[name, place.dtype, list(place.shape)] for name, place in sorted(checkpoint.tensors.items())]
    assert checkpoint.facts.tensors == digest_of(forms)
