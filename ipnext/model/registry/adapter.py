"""Names of engines and of their adapters (LoRA), in an engine and for clients."""

from ipnext.model.value import Value


class ServedAdapter(Value):
    """An adapter of a generation, as a router requests it."""

    base: str
    """The part whose engines load it."""
    name: str
    """Its name in the engine."""


def engine_name(part: str, digest: str) -> str:
    """Return the name of an adapter's snapshot in an engine. Two snapshots of the same part have different names."""
    return f"{part}@{digest:.16}"


def answering_name(model: str, digest: str, process: str = "") -> str:
    """Return the `model` that an engine writes into its answers.

    It differs for each snapshot and for each `process` given.
    """
    return f"{model}@{digest:.16}{process and '-' + process}"


def adapter_in(name: str, answers_as: str | None) -> str:
    """Return the name of an adapter in the engine that answers as `answers_as`, which contains it. None: unknown."""
    return name if answers_as is None else f"{name}@{answers_as.partition('@')[2]}"


def client_name(model: str, part: str) -> str:
    """Return the name by which clients request an adapter of a model. Neither name has a colon."""
    return f"{model}:{part}"
