"""How engines and the adapters (LoRA) in them are named, in an engine and by clients."""

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


def answering_name(model: str, digest: str, process: str = "") -> str:
    """What an engine writes into its answers as `model`: of another snapshot another name, and of another `process` if given."""
    return f"{model}@{digest:.16}{process and '-' + process}"


def adapter_in(name: str, answers_as: str | None) -> str:
    """The name of an adapter in the engine that answers by a name, which stands in it. None: that is not known."""
    return name if answers_as is None else f"{name}@{answers_as.partition('@')[2]}"


def client_name(model: str, part: str) -> str:
    """The name by which clients ask for an adapter of a model. Neither name has a colon."""
    return f"{model}:{part}"
