"""The facts of a checkpoint, read from its `config.json` and the headers of its weights."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from ipnext.model.settings.engine import VllmSettings
from ipnext.model.value import Sha256, Value

CONFIG_FILE: Final = "config.json"
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
_GENERATIVE: Final = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Suffixes of architectures that generate text, as transformers names them."""

FactText = Annotated[str, Field(max_length=1024)]
"""A name or a path in a checkpoint's own configuration."""


class Checkpoint(Value):
    """The facts of a checkpoint, kept in the snapshot's manifest."""

    kind: Literal["model", "adapter"] = "model"
    architecture: FactText
    """As `config.json` names it, such as LlamaForCausalLM; of an adapter its kind, such as LORA."""
    dtype: FactText
    """The dtype of most of its numbers, as safetensors names it."""
    parameters: int = Field(ge=0)
    tensors: Sha256
    """SHA-256 over name, dtype and shape of all tensors, sorted by name: the same for each training of one form."""
    hidden_size: int | None = None
    vocabulary: int | None = None
    layers: int | None = None
    heads: int | None = None
    positions: int | None = None
    """Longest sequence that the model was made for, in tokens."""
    base: FactText | None = None
    """Of an adapter: the model that it was trained on."""
    rank: int | None = None
    """Of an adapter: the rank of its matrices."""

    @property
    def embeds(self) -> bool:
        """Whether it outputs vectors instead of text."""
        return self.kind == "model" and not self.architecture.endswith(_GENERATIVE)

    def other_than(self, found: "Checkpoint") -> str | None:
        """Return the first fact that differs between the files (`found`) and `snapshot.json` (self).

        None if all agree.
        """
        for fact in type(self).model_fields:
            told, true = getattr(self, fact), getattr(found, fact)
            if told != true:
                return f"snapshot.json says checkpoint.{fact} {told!r}; the files say {true!r}"
        return None


MOST_LAYERS: Final = 10_000
"""The largest models have some hundred. Shapes are compared layer by layer."""
LARGEST_SIZE: Final = 2**31 - 1

Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
"""A dimension or count of a checkpoint."""


class CheckpointConfig(Value):
    """The fields of `config.json` in use. For a multi-modal model these are the text model's numbers."""

    model_config = Value.model_config | {"extra": "ignore"}

    architectures: tuple[FactText, ...] = ()
    name_or_path: str | None = Field(default=None, alias="_name_or_path")
    """The source from which the saving tool loaded it."""
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    vocab_size: Size | None = None
    num_hidden_layers: int | None = Field(default=None, ge=1, le=MOST_LAYERS)
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size | None = None
    quantization_config: Mapping[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_model(cls, given: Any) -> Any:
        inner = given.get("text_config") if isinstance(given, dict) else None
        return (
            {**given, **inner, "architectures": given.get("architectures") or ()} if isinstance(inner, dict) else given
        )


def unfit_settings(checkpoint: Checkpoint, settings: VllmSettings) -> Iterator[str]:
    """Yield the settings of a part that a checkpoint can't satisfy."""
    positions, heads = checkpoint.positions, checkpoint.heads
    if settings.max_model_len and positions and settings.max_model_len > positions:
        yield f"settings.maxModelLen: {settings.max_model_len} is more than the {positions} positions of the checkpoint"
    if heads and heads % settings.tensor_parallel_size:
        yield (
            f"settings.tensorParallelSize: {settings.tensor_parallel_size} does not divide the {heads} attention heads"
        )
    if checkpoint.layers and settings.pipeline_parallel_size > checkpoint.layers:
        yield (
            f"settings.pipelineParallelSize: {settings.pipeline_parallel_size} is more than the "
            f"{checkpoint.layers} layers"
        )
    if checkpoint.embeds and settings.runner != "pooling":
        yield f"settings.runner: {settings.runner!r}, but {checkpoint.architecture} embeds; write pooling"
    if checkpoint.kind == "adapter":
        yield (
            f"the snapshot is an adapter on {checkpoint.base or 'an unnamed model'}, "
            "not a model that can be served by itself"
        )
