"""Reads checkpoints of transformers and PEFT: their configuration, their files, and their tensors' forms.

Only JSON and the headers of safetensors files are read, never weights; pickled weights are refused.
"""

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Protocol, TypeVar

from pydantic import Field

from ipnext.artifacts.bounded_json import TooManyValues, load_bounded, validate_document
from ipnext.artifacts.checkpoints import tokenizer_files
from ipnext.artifacts.checkpoints.tensor_headers import (
    HeaderSum,
    MalformedTensors,
    TensorPlace,
    read_places,
    size_fault,
)
from ipnext.artifacts.checkpoints.tokenizer_files import ChatTemplate, MalformedTemplates
from ipnext.artifacts.local_links import open_directory
from ipnext.errors import InvalidInput
from ipnext.model.registry.checkpoint import ADAPTER_CONFIG_FILE, CONFIG_FILE, Checkpoint, CheckpointConfig, FactText
from ipnext.model.value import Value, canonical_json

INDEX_FILE: Final = "model.safetensors.index.json"
ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"
WEIGHTS_SUFFIX: Final = ".safetensors"
PICKLED_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LARGEST_INDEX_BYTES: Final = 32 << 20
"""An index of MOST_TENSORS has 25 MB, at a hundred bytes each."""
LARGEST_CONFIG_BYTES: Final = 16 << 20
"""Of every other document. Gemma 3 has a `tokenizer_config.json` of 1.2 MB."""
MOST_TENSORS: Final = 250_000
"""Most tensors in all files of a checkpoint together; 384 experts in 60 layers, packed in 4 bits, are 207,000."""
MOST_DIMENSIONS: Final = 8
"""Of a tensor of a checkpoint; those of known models have up to five."""
MOST_INDEX_SEPARATORS: Final = MOST_TENSORS + 1_000
MOST_CONFIG_SEPARATORS: Final = 150_000
"""Of every document except the index. The `tokenizer_config.json` of Gemma 3, with 6,400 words, has some 50,000."""
CODE_FIELD: Final = "auto_map"
CODE_FILES: Final = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"),
    *("preprocessor_config.json", "image_processor_config.json", "video_preprocessor_config.json"),
)
"""Files in which transformers looks for CODE_FIELD: Python classes of the checkpoint, or of another repository."""
OTHER_MODEL_FIELD: Final = "speculators_config"
"""Field of CONFIG_FILE: vLLM serves the model that it names, a path or a repository, in place of the checkpoint."""

M = TypeVar("M", bound=Value)
T = TypeVar("T")


class CheckpointFiles(Protocol):
    """Files of a checkpoint, in any storage."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Path -> bytes, of all files."""

    def open(self, path: str) -> BinaryIO:
        """Open a stream of a file; the caller closes it."""

    def parse(self, size_bytes: int, read: Callable[[], T], /) -> T:
        """Return the result of `read`, which makes objects of `size_bytes` bytes."""


class LocalFiles:
    """A directory on this machine. PathNotAllowed if links lead out of it, before any file is read."""

    def __init__(self, directory: Path) -> None:
        self._source = open_directory(directory)
        found = sorted(path for path in directory.rglob("*") if path.is_file())
        self.sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}

    def open(self, path: str) -> BinaryIO:
        """Open a stream of a file. PathNotAllowed if a link has come since that leads out of the directory."""
        return self._source.open(path)

    def parse(self, size_bytes: int, read: Callable[[], T], /) -> T:  # noqa: ARG002 - the protocol's form
        """Parse in this thread."""
        return read()


class AdapterConfig(Value):
    """The used fields of PEFT's `adapter_config.json`."""

    model_config = Value.model_config | {"extra": "ignore"}

    base_model_name_or_path: FactText | None = None
    peft_type: FactText = "LORA"
    task_type: str | None = None
    r: int | None = Field(default=None, ge=1)
    rank_pattern: Mapping[str, int] | None = None
    """Pattern of modules' names -> their rank, if it is not `r`."""
    fan_in_fan_out: bool = False
    """Whether the matrices that it changes are transposed, as in GPT-2."""
    bias: str = "none"
    modules_to_save: tuple[str, ...] | None = None
    init_lora_weights: bool | str | None = True
    use_dora: bool = False
    lora_bias: bool = False
    use_qalora: bool = False
    use_bdlora: Any = None
    alora_invocation_tokens: Any = None
    layer_replication: Any = None


@dataclass(frozen=True)
class ReadCheckpoint:
    """A checkpoint without its weights."""

    facts: Checkpoint
    config: CheckpointConfig
    tensors: Mapping[str, TensorPlace]
    weights: tuple[str, ...]
    """Files with its tensors."""
    adapter: AdapterConfig | None = None
    """Configuration of an adapter."""
    templates: tuple[ChatTemplate, ...] = ()
    """Its chat templates."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Name -> text of the special tokens that templates get."""


def is_checkpoint(directory: Path) -> bool:
    """Return whether `import-checkpoint` can read a directory."""
    return any((directory / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE))


def read_checkpoint(files: CheckpointFiles) -> ReadCheckpoint:
    """Return configuration and tensors of a checkpoint with all its shards.

    InvalidInput names the file or the tensor.
    """
    adapter = _config(files, ADAPTER_CONFIG_FILE, AdapterConfig) if ADAPTER_CONFIG_FILE in files.sizes else None
    if adapter is None and CONFIG_FILE not in files.sizes:
        msg = f"{CONFIG_FILE}: missing; a checkpoint is a directory as transformers' save_pretrained writes it"
        raise _fault(msg)
    _check_sizes(files)
    _check_own_content(files)
    weights, told = _weight_files(files, adapter=adapter is not None)
    tensors: dict[str, TensorPlace] = {}
    headers = HeaderSum()
    for file in weights:
        for name, place in _places(files, file, headers).items():
            if name in tensors:
                msg = f"{file}: tensor {name!r} stands in another file too"
                raise _fault(msg)
            if told and told.get(name) != file:
                msg = f"{file}: tensor {name!r} is in it; {INDEX_FILE} says {told.get(name, 'nothing of it')!r}"
                raise _fault(msg)
            tensors[name] = place
        if len(tensors) > MOST_TENSORS:
            msg = f"{file}: with it the checkpoint has {len(tensors)} tensors; allowed: {MOST_TENSORS}"
            raise _fault(msg)
    absent = sorted(told.keys() - tensors.keys())
    if absent:
        msg = f"{told[absent[0]]}: has no tensor {absent[0]!r}, which {INDEX_FILE} says is in it"
        raise _fault(msg)
    templates, tokens = _chat_templates(files), _special_tokens(files)
    if adapter is not None:
        facts = _adapter_facts(adapter, tensors)
        return ReadCheckpoint(facts, CheckpointConfig(), tensors, weights, adapter, templates, tokens)
    config = _config(files, CONFIG_FILE, CheckpointConfig)
    return ReadCheckpoint(_facts(config, tensors), config, tensors, weights, None, templates, tokens)


def _check_sizes(files: CheckpointFiles) -> None:
    for path, size in files.sizes.items():
        if fault := tokenizer_files.size_fault(path, size):
            raise _fault(fault)


def _chat_templates(files: CheckpointFiles) -> tuple[ChatTemplate, ...]:
    try:
        return tokenizer_files.take_templates(_each_template(files))
    except MalformedTemplates as error:
        raise _fault(str(error)) from error


def _each_template(files: CheckpointFiles) -> Iterator[ChatTemplate]:
    for path in sorted(filter(tokenizer_files.is_template_file, files.sizes)):
        with files.open(path) as stream:
            yield tokenizer_files.parse_template_file(path, stream.read(tokenizer_files.LARGEST_TEMPLATE_BYTES + 1))
    for name in tokenizer_files.TEMPLATE_DOCUMENTS:
        if name in files.sizes:
            yield from tokenizer_files.templates_in(name, _json(files, name).get(tokenizer_files.TEMPLATE_FIELD))


def _special_tokens(files: CheckpointFiles) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in tokenizer_files.TOKEN_DOCUMENTS:
        if name in files.sizes:
            found |= tokenizer_files.special_tokens_in(_json(files, name))
    return found


def _check_own_content(files: CheckpointFiles) -> None:
    for name in CODE_FILES:
        if name in files.sizes and CODE_FIELD in _json(files, name):
            msg = (
                f"{name}: {CODE_FIELD} names Python classes that the checkpoint would bring, "
                "and hosts run no code of a "
                "snapshot; remove the field if vLLM knows the model, else it can't be served"
            )
            raise _fault(msg)
    if CONFIG_FILE in files.sizes and OTHER_MODEL_FIELD in _json(files, CONFIG_FILE):
        msg = f"{CONFIG_FILE}: {OTHER_MODEL_FIELD} names another model, which vLLM would serve; publish that one itself"
        raise _fault(msg)


def _weight_files(files: CheckpointFiles, *, adapter: bool) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Return the files of tensors, and the index's file of each tensor; there may be no index."""
    found = tuple(sorted(p for p in files.sizes if p.endswith(WEIGHTS_SUFFIX) and "/" not in p))
    if adapter:
        found = tuple(path for path in found if path == ADAPTER_WEIGHTS_FILE)
    elif INDEX_FILE in files.sizes:
        told = _weight_map(files)
        missing = sorted(set(told.values()) - files.sizes.keys())
        if missing:
            msg = f"{missing[0]}: missing; {INDEX_FILE} says that tensors are in it"
            raise _fault(msg)
        return tuple(sorted(set(told.values()))), told
    elif "model.safetensors" in found:
        found = ("model.safetensors",)
    if len(found) == 1:
        return found, {}
    if found:
        msg = f"{INDEX_FILE}: missing, and needed for several files of weights: {', '.join(found[:5])}"
        raise _fault(msg)
    pickled = sorted(path for path in files.sizes if PurePosixPath(path).suffix in PICKLED_SUFFIXES)
    what = f"pickled weights ({pickled[0]}) are refused, since they run code" if pickled else "no weights"
    msg = f"{what}; save the checkpoint as safetensors (save_pretrained with safe_serialization)"
    raise _fault(msg)


def _weight_map(files: CheckpointFiles) -> Mapping[str, str]:
    told = _json(files, INDEX_FILE).get("weight_map")
    if not isinstance(told, dict) or not all(isinstance(file, str) and "/" not in file for file in told.values()):
        msg = f"{INDEX_FILE}: weight_map must name a file of this directory for each tensor"
        raise _fault(msg)
    return told


def _places(files: CheckpointFiles, file: str, headers: HeaderSum) -> Mapping[str, TensorPlace]:
    with files.open(file) as stream:
        try:
            places, _ = read_places(stream, files.sizes[file], parse=files.parse, headers=headers)
        except MalformedTensors as error:
            msg = f"{file}: is no whole safetensors file: {error}"
            raise _fault(msg) from error
    for name, place in places.items():
        if fault := _dimension_fault(name, place) or size_fault(name, place):
            msg = f"{file}: {fault}"
            raise _fault(msg)
    return places


def _dimension_fault(name: str, place: TensorPlace) -> str:
    if len(place.shape) <= MOST_DIMENSIONS:
        return ""
    return f"tensor {name!r} has {len(place.shape)} dimensions; allowed: {MOST_DIMENSIONS}"


def _facts(config: CheckpointConfig, tensors: Mapping[str, TensorPlace]) -> Checkpoint:
    if not config.architectures:
        msg = f"{CONFIG_FILE}: architectures is missing; it names the model's class, such as LlamaForCausalLM"
        raise _fault(msg)
    return Checkpoint(
        architecture=config.architectures[0],
        **_forms(tensors),
        hidden_size=config.hidden_size,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        positions=config.max_position_embeddings,
    )


def _adapter_facts(config: AdapterConfig, tensors: Mapping[str, TensorPlace]) -> Checkpoint:
    return Checkpoint(
        kind="adapter",
        architecture=config.peft_type,
        **_forms(tensors),
        base=config.base_model_name_or_path,
        rank=config.r,
    )


def _forms(tensors: Mapping[str, TensorPlace]) -> dict[str, Any]:
    numbers = Counter[str]()
    for place in tensors.values():
        numbers[place.dtype] += math.prod(place.shape)
    dtype = numbers.most_common(1)[0][0] if numbers else "none"
    return {"dtype": dtype, "parameters": numbers.total(), "tensors": _digest_of_forms(tensors)}


def _digest_of_forms(tensors: Mapping[str, TensorPlace]) -> str:
    """Return the SHA-256 of the canonical JSON of all forms, whose text is never held as a whole."""
    digest = hashlib.sha256(b"[")
    for number, name in enumerate(sorted(tensors)):
        place = tensors[name]
        text = canonical_json([name, place.dtype, list(place.shape)])
        digest.update(f",{text}".encode() if number else text.encode())
    digest.update(b"]")
    return digest.hexdigest()


def _config(files: CheckpointFiles, name: str, kind: type[M]) -> M:
    document = _json(files, name)
    try:
        return validate_document(document, kind)
    except InvalidInput as error:
        msg = f"{name}: {error.message}"
        raise _fault(msg) from error


def _json(files: CheckpointFiles, name: str) -> dict[str, Any]:
    largest = LARGEST_INDEX_BYTES if name == INDEX_FILE else LARGEST_CONFIG_BYTES
    if files.sizes[name] > largest:
        msg = f"{name}: {files.sizes[name]} bytes are too many; allowed: {largest}"
        raise _fault(msg)
    most = MOST_INDEX_SEPARATORS if name == INDEX_FILE else MOST_CONFIG_SEPARATORS
    with files.open(name) as stream:
        try:
            content = files.parse(files.sizes[name], lambda: load_bounded(stream.read(), most_separators=most))
        except TooManyValues as error:
            msg = f"{name}: has {error}"
            raise _fault(msg) from error
        except (ValueError, RecursionError) as error:
            msg = f"{name}: is not JSON: {error}"
            raise _fault(msg) from error
    if not isinstance(content, dict):
        msg = f"{name}: must be a JSON object"
        raise _fault(msg)
    return content


def _fault(message: str) -> InvalidInput:
    return InvalidInput(message, field=message.partition(":")[0])


def layer_numbers(names: Mapping[str, object]) -> Iterator[int]:
    """Yield the numbers of layers in the tensors' names."""
    for name in names:
        steps = name.split(".")
        yield from (int(b) for a, b in itertools.pairwise(steps) if a in _LAYER_WORDS and _NUMBER.fullmatch(b))


_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_LAYER_WORDS: Final = frozenset({"layers", "layer", "h", "blocks"})
