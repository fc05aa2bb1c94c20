"""Whether a checkpoint's tensors match its `config.json`. A mismatch is found here, before an engine fails on it.

For the Llama family every layer's matrices are checked by name; for others the embedding and the count of layers.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from ipnext.artifacts.checkpoints.adapter_fit import adapter_misfits
from ipnext.artifacts.checkpoints.reader import ReadCheckpoint, layer_numbers
from ipnext.model.registry.checkpoint import CONFIG_FILE, CheckpointConfig

LLAMA_FAMILY: Final = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"}
    | {"Gemma2ForCausalLM", "Gemma3ForCausalLM"}
)
_EMBEDDINGS: Final = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight")

Shape = tuple[int, ...]


def misfits(checkpoint: ReadCheckpoint) -> Iterator[str]:
    """Yield each tensor that is missing or of another shape than in the configuration."""
    if checkpoint.facts.kind == "adapter":
        yield from adapter_misfits(checkpoint)
        return
    yield from _embedding_misfits(checkpoint)
    yield from _layer_misfits(checkpoint)
    if checkpoint.facts.architecture in LLAMA_FAMILY and checkpoint.config.quantization_config is None:
        yield from _shape_misfits(checkpoint, llama_shapes(checkpoint.config))


def _embedding_misfits(checkpoint: ReadCheckpoint) -> Iterator[str]:
    vocabulary, hidden = checkpoint.config.vocab_size, checkpoint.config.hidden_size
    if vocabulary is None or hidden is None:
        return
    for name, place in checkpoint.tensors.items():
        if name.endswith(_EMBEDDINGS) and place.shape != (vocabulary, hidden):
            yield _other_shape(name, place.shape, (vocabulary, hidden))


def _layer_misfits(checkpoint: ReadCheckpoint) -> Iterator[str]:
    told = checkpoint.config.num_hidden_layers
    found = set(layer_numbers(checkpoint.tensors))
    if told is None or not found or found == set(range(told)):
        return
    absent, more = sorted(set(range(told)) - found), sorted(found - set(range(told)))
    what = f"layer {absent[0]} has no tensor" if absent else f"there is a layer {more[0]}"
    yield f"{what}; {CONFIG_FILE} says {told} layers"


def _shape_misfits(checkpoint: ReadCheckpoint, shapes: Mapping[str, Shape]) -> Iterator[str]:
    for name, shape in shapes.items():
        place = checkpoint.tensors.get(name)
        if place is None:
            yield f"tensor {name!r} is missing; {CONFIG_FILE} asks for it with shape {list(shape)}"
        elif place.shape != shape:
            yield _other_shape(name, place.shape, shape)


def llama_shapes(config: CheckpointConfig) -> Mapping[str, Shape]:
    """Return name and shape of each tensor of the family's models, with the names of transformers."""
    hidden, heads, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    if hidden is None or heads is None or inner is None:
        return {}
    size = config.head_dim or hidden // heads
    queries, keys = heads * size, (config.num_key_value_heads or heads) * size
    layer = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
    }
    numbers = range(config.num_hidden_layers or 0)
    layers = {f"model.layers.{n}.{name}": shape for n in numbers for name, shape in layer.items()}
    embedding = {"model.embed_tokens.weight": (config.vocab_size, hidden)} if config.vocab_size else {}
    return {**embedding, **layers, "model.norm.weight": (hidden,)}


def _other_shape(name: str, found: Shape, told: Shape) -> str:
    return f"tensor {name!r} has shape {list(found)}; {CONFIG_FILE} says {list(told)}"
