"""Writes a tiny random Llama, or a BERT that embeds, with a tokenizer of bytes or letters.

`python -m tests.genai.support.tiny_models DIRECTORY... --seed N`. Some seventy thousand parameters; head_dim is 32,
the smallest that vLLM's attention on a CPU takes. Each directory gets the next seed, which writes another text, so that
a change of weights can be seen. Without transformers, whose import takes longer than all else.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZE, INNER, LAYERS, HEADS = 64, 128, 1, 2
"""One layer: each takes a fifth of the processor time of a token."""
SPREAD = 0.5
"""Standard deviation of weights: far apart, so that greedy text differs by seed."""
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BERT_LENGTH = 64


def write_tiny_llama(directory: Path, *, seed: int) -> Path:
    """Write a Llama of bfloat16 whose tokens are bytes; by itself it ends no greedy text."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), *sorted(byte_letters())]
    model = {"type": "BPE", "vocab": numbered(words), "merges": []}
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(words),
        "hidden_size": SIZE,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": SIZE // HEADS,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "bos_token_id": words.index("<s>"),
        "eos_token_id": words.index("</s>"),
        "dtype": "bfloat16",
    }
    tensors = random_tensors(llama_shapes(len(words)), seed)
    tensors["lm_head.weight"][config["eos_token_id"]] = 0
    write(directory, config, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
    write_tokenizer(
        directory, model, special | {"pad_token": "</s>"}, pre_tokenizer=cut, decoder=cut, chat_template=TEMPLATE
    )
    return directory


def write_tiny_bert(directory: Path, *, seed: int) -> Path:
    """Write a BERT of float32 whose tokens are letters, in the form of sentence-transformers."""
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    alphabet = [chr(97 + number) for number in range(26)]
    words = [*special.values(), *alphabet, *(f"##{letter}" for letter in alphabet)]
    limit = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    model = {"type": "WordPiece", "unk_token": "[UNK]", **limit, "vocab": numbered(words)}
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    begin, end = ([{"SpecialToken": {"id": word, "type_id": 0}}] for word in ("[CLS]", "[SEP]"))
    ends = {word: {"id": word, "ids": [words.index(word)], "tokens": [word]} for word in ("[CLS]", "[SEP]")}
    around = {"type": "TemplateProcessing", "single": [*begin, *text, *end], "pair": [], "special_tokens": ends}
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": SIZE,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": BERT_LENGTH,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": words.index("[PAD]"),
        "dtype": "float32",
    }
    write(directory, config, random_tensors(bert_shapes(len(words)), seed))
    write_tokenizer(directory, model, special, pre_tokenizer={"type": "BertPreTokenizer"}, post_processor=around)
    write_pooling(directory)
    return directory


def byte_letters() -> Iterator[str]:
    """Yield the letters that stand for bytes: of those that are none, letters from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))


def numbered(words: Iterable[str]) -> Mapping[str, int]:
    """Return the number of each word, its place."""
    return {word: number for number, word in enumerate(words)}


def llama_shapes(words: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor."""
    yield from (("model.embed_tokens.weight", (words, SIZE)), ("lm_head.weight", (words, SIZE)))
    yield "model.norm.weight", (SIZE,)
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        yield from ((f"{place}.self_attn.{name}_proj.weight", (SIZE, SIZE)) for name in "qkvo")
        yield from ((f"{place}.mlp.{name}_proj.weight", (INNER, SIZE)) for name in ("gate", "up"))
        yield f"{place}.mlp.down_proj.weight", (SIZE, INNER)
        yield from ((f"{place}.{name}_layernorm.weight", (SIZE,)) for name in ("input", "post_attention"))


def bert_shapes(words: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor."""
    rows = {"word": words, "position": BERT_LENGTH, "token_type": 2}
    yield from ((f"embeddings.{name}_embeddings.weight", (count, SIZE)) for name, count in rows.items())
    normed = ["embeddings"]
    dense = [("pooler.dense", SIZE, SIZE)]
    for layer in range(LAYERS):
        place = f"encoder.layer.{layer}"
        dense += [(f"{place}.attention.self.{name}", SIZE, SIZE) for name in ("query", "key", "value")]
        dense += [(f"{place}.attention.output.dense", SIZE, SIZE), (f"{place}.intermediate.dense", INNER, SIZE)]
        dense += [(f"{place}.output.dense", SIZE, INNER)]
        normed += [f"{place}.attention.output", f"{place}.output"]
    for name, outputs, inputs in dense:
        yield from ((f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,)))
    for name in normed:
        yield from ((f"{name}.LayerNorm.weight", (SIZE,)), (f"{name}.LayerNorm.bias", (SIZE,)))


def random_tensors(shapes: Iterable[tuple[str, tuple[int, ...]]], seed: int) -> Mapping[str, Tensor]:
    """Return random matrices; vectors are 0 as biases and 1 as weights."""
    random = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        return torch.randn(shape, generator=random) * SPREAD

    return {name: tensor(name, shape) for name, shape in shapes}


def write(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write configuration and weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(
    directory: Path, model: Mapping[str, Any], special: Mapping[str, str], *, chat_template: str = "", **steps: Any
) -> None:
    """Write a tokenizer in the form of the library `tokenizers`."""
    vocabulary = model["vocab"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": vocabulary[word], "content": word, **flags, "special": True} for word in dict.fromkeys(special.values())
    ]
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    told = {"version": "1.0", "added_tokens": added, **empty, **steps, "model": model}
    (directory / "tokenizer.json").write_text(json.dumps(told))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if chat_template:
        (directory / "chat_template.jinja").write_text(chat_template)


def write_pooling(directory: Path) -> None:
    """What sentence-transformers writes beside the model: the mean over all tokens, of length 1."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": SIZE, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def main() -> None:
    """Write what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--kind", choices=["llama", "bert"], default="llama")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    kinds = {"llama": write_tiny_llama, "bert": write_tiny_bert}
    for seed, directory in enumerate(arguments.directories, arguments.seed):
        kinds[arguments.kind](directory, seed=seed)


if __name__ == "__main__":
    main()
