"""Builds a tiny random Llama, or a BERT that embeds, with a tokenizer of bytes or letters.

`VLLM_PYTHON tiny.py DIRECTORY... --seed N`. About a hundred thousand parameters; head_dim is 32, the smallest that
vLLM's attention on a CPU takes. Each directory gets the next seed, which writes another text, so that a change of
weights can be seen. Run by the interpreter that has vLLM, and so torch and transformers.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {letter: number for number, letter in enumerate(letters, 3)}
    inner = Tokenizer(models.BPE(vocab=words, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE, **names)


def llama(words, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.5,  # far apart, so that greedy text differs by seed
        bos_token_id=0,
        eos_token_id=1,
        dtype=torch.bfloat16,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def letters():
    """A tokenizer of words that are cut into letters."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = [chr(97 + number) for number in range(26)]
    words = {word: number for number, word in enumerate([*names, *alphabet, *(f"##{one}" for one in alphabet)])}
    inner = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = zip(("pad", "unk", "cls", "sep", "mask"), names, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{f"{kind}_token": name for kind, name in special})


def bert(words, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=words, max_position_embeddings=64, initializer_range=0.5, **sizes))


def write_pooling(directory):
    """What sentence-transformers writes beside the model: the mean over all tokens, of length 1."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--kind", choices=["llama", "bert"], default="llama")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    words, build = (letters(), bert) if arguments.kind == "bert" else (tokenizer(), llama)
    for seed, directory in enumerate(arguments.directories, arguments.seed):
        build(len(words), seed).save_pretrained(directory)
        words.save_pretrained(directory)
        if arguments.kind == "bert":
            write_pooling(directory)


if __name__ == "__main__":
    main()
