"""Size of a conversation in a request to an engine, and its chat template. Used by serving.openai.routes.

An engine renders a conversation by a program of the model's publisher, its chat template. That program was rendered
with small conversations as the model was published, and its time may grow with the square of the messages: a thread of
vLLM that renders can't be ended.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput

MOST_MESSAGES: Final = 4096
"""In all conversations of a request together."""
MOST_OBJECTS: Final = 16_384
"""Objects in them: messages, their parts, calls of tools."""
MOST_TOOLS: Final = 1024
MOST_DOCUMENTS: Final = 1024
MOST_VALUES: Final = 1024
"""Values in `chat_template_kwargs`, at all levels."""
TEMPLATE: Final = "chat_template"
VARIABLES: Final = "chat_template_kwargs"
_CONVERSATIONS: Final = ("messages", "input")
"""Of chats, and of responses; `input` of embeddings has texts or numbers."""


def check_conversation(body: Mapping[str, Any], content: bytes | bytearray) -> None:
    """Raise InvalidInput if a request has its own chat template, or a longer conversation than templates are given.

    `content` is the unparsed body.
    """
    variables = body.get(VARIABLES)
    _check_template(body, TEMPLATE)
    if isinstance(variables, dict):
        _check_template(variables, f"{VARIABLES}.{TEMPLATE}")
        _check_count(VARIABLES, "values", _count_values(variables), MOST_VALUES)
    if isinstance(tools := body.get("tools"), list):
        _check_count("tools", "entries", len(tools), MOST_TOOLS)
    if "messages" in body and isinstance(documents := body.get("documents"), list):
        _check_count("documents", "entries", len(documents), MOST_DOCUMENTS)
    has_many = content.count(b"{") > MOST_OBJECTS
    for field in _CONVERSATIONS:
        messages = body.get(field)
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict | list):
            continue
        _check_count(field, "messages", _count_messages(messages), MOST_MESSAGES)
        if has_many:
            _check_count(field, "objects", _count_objects(messages), MOST_OBJECTS)


def _check_template(given: Mapping[str, Any], place: str) -> None:
    if given.get(TEMPLATE) is not None:
        msg = f"{place}: must be left out: prompts are made by the model's own template, which its publish has checked"
        raise InvalidInput(msg, field=place, value=given[TEMPLATE])


def _check_count(field: str, what: str, found: int, most: int) -> None:
    if found > most:
        msg = f"{field}: must have at most {most} {what}, got {found}"
        raise InvalidInput(msg, field=field, value=found, allowed=(f"at most {most} {what}",))


def _count_messages(messages: list[Any]) -> int:
    """Return the number of messages, those of several conversations together."""
    if isinstance(messages[0], dict):
        return len(messages)
    return sum(len(one) for one in messages if isinstance(one, list) and one and isinstance(one[0], dict))


def _count_objects(messages: list[Any]) -> int:
    """Return the number of objects at all levels."""
    return sum(isinstance(value, dict) for value in _values(messages))


def _count_values(variables: Mapping[str, Any]) -> int:
    """Return the number of values at all levels."""
    return sum(1 for _ in _values(variables)) - 1


def _values(value: object) -> Iterator[object]:
    """Yield a value and all values in it."""
    found = [value]
    while found:
        yield (value := found.pop())
        if isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list):
            found += value
