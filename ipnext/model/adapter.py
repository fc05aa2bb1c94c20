"""Adapters (LoRA) beside the model that an engine serves: how they are named, in an engine and by clients."""

from ipnext.model.value import Value


class ServedAdapter(Value):
    """An adapter of a generation as a router asks for it."""

    base: str
    """The part whose engines have it."""
    name: str
    """Its name in the engine."""


def engine_name(part: str, digest: str) -> str:
    """The name of a snapshot of an adapter in an engine: of another snapshot of the same part another one."""
    return f"{part}@{digest:.16}"


def client_name(model: str, part: str) -> str:
    """The name by which clients ask for an adapter of a model. Neither name has a colon."""
    return f"{model}:{part}"
