"""Small checkpoints of the Llama form, written without torch: right ones, and ones with a fault."""

import json

import numpy as np
from safetensors.numpy import save_file

from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint
from ipnext.artifacts.sources import DirectorySource
from ipnext.model.registry.registry import SnapshotSource

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "vocab_size": 11,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "max_position_embeddings": 64,
}


def llama_tensors(seed=0):
    shapes = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,), "lm_head.weight": (11, 8)}
    for layer in range(2):
        place = f"model.layers.{layer}."
        shapes |= {f"{place}self_attn.{name}_proj.weight": (rows, 8) for name, rows in (("q", 8), ("k", 4), ("v", 4))}
        shapes |= {f"{place}self_attn.o_proj.weight": (8, 8), f"{place}mlp.down_proj.weight": (8, 12)}
        shapes |= {f"{place}mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
        shapes |= {f"{place}{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_llama(directory, *, tensors=None, shards=1, seed=0, **config):
    """A checkpoint directory; `config` overrides entries of config.json, None leaves one out."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {key: value for key, value in (CONFIG | config).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(told))
    (directory / "tokenizer.json").write_text("{}")
    given = llama_tensors(seed) if tensors is None else tensors
    if shards == 1:
        save_file(given, directory / "model.safetensors")
        return directory
    files = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    places = {name: files[number % shards] for number, name in enumerate(sorted(given))}
    for file in files:
        save_file({name: given[name] for name, place in places.items() if place == file}, directory / file)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_bert(directory, **config):
    """An embedding model of the form of sentence-transformers."""
    directory.mkdir(parents=True)
    told = {"architectures": ["BertModel"], "hidden_size": 4, "vocab_size": 6, "num_hidden_layers": 1}
    told |= {"num_attention_heads": 2, "max_position_embeddings": 32, **config}
    (directory / "config.json").write_text(json.dumps(told))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text("{}")
    zeros = np.zeros((6, 4), np.float32)
    tensors = {"embeddings.word_embeddings.weight": zeros, "encoder.layer.0.output.dense.weight": zeros}
    save_file(tensors, directory / "model.safetensors")
    return directory


def adapter_tensors(module="model.layers.0.self_attn.q_proj", *, inputs=8, outputs=8, rank=2, value=1.0):
    """The two matrices of one module; those of the checkpoints above by default."""
    name = f"base_model.model.{module}.lora_"
    shapes = {f"{name}A.weight": (rank, inputs), f"{name}B.weight": (outputs, rank)}
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def write_adapter(directory, *, rank=2, tensors=None, **config):
    """A LoRA adapter as PEFT writes it; `config` overrides entries of adapter_config.json."""
    directory.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": "chat"}
    (directory / "adapter_config.json").write_text(json.dumps(told | config))
    save_file(adapter_tensors() if tensors is None else tensors, directory / "adapter_model.safetensors")
    return directory


def stored(artifacts, directory, manifest=None):
    """A checkpoint in an artifact store, with the manifest that it has or another one."""
    manifest = manifest or describe_checkpoint(directory).manifest
    source = DirectorySource(directory, roots=(directory,))
    for file in manifest.files:
        with source.open(file.path) as stream:
            artifacts.put_blob(file.sha256, [stream.read()])
    return SnapshotSource(manifest=manifest, uri=artifacts.commit(manifest))


def write_vllm_adapter(directory, *, seed):
    """An adapter of rank 8 that changes the tiny Llama's answers."""
    directory.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": 8, "lora_alpha": 64, "target_modules": ["q_proj", "o_proj"], "bias": "none"}
    told |= {"base_model_name_or_path": "chat", "task_type": "CAUSAL_LM", "lora_dropout": 0.0}
    (directory / "adapter_config.json").write_text(json.dumps(told))
    random = np.random.default_rng(seed)
    tensors = {}
    for name in ("q_proj", "o_proj"):
        place = f"base_model.model.model.layers.0.self_attn.{name}.lora_"
        tensors[f"{place}A.weight"] = random.standard_normal((8, 64)).astype(np.float32)
        tensors[f"{place}B.weight"] = random.standard_normal((64, 8)).astype(np.float32)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory
