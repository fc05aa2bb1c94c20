"""Size of a conversation in a request to an engine, and its chat template. Used by serving.openai.routes.

An engine renders a conversation by a program of the model's publisher, its chat template. That program was rendered
with small conversations as the model was published, and its time may grow with the square of the messages, or of the
values in a tool: a thread of vLLM that renders can't be ended. An engine also makes a grammar of a schema, and a
request of its own of each prompt.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput
from serving.protocol.json_size import most_values

MOST_MESSAGES: Final = 4096
"""In all conversations of a request together."""
MOST_OBJECTS: Final = 16_384
"""Objects in them: messages, their parts, calls of tools."""
MOST_TOOLS: Final = 1024
MOST_DOCUMENTS: Final = 1024
MOST_VALUES: Final = 1024
"""Values in `chat_template_kwargs`, at all levels."""
MOST_SCHEMA_VALUES: Final = 8192
"""Values in each of _SCHEMAS, at all levels: a template that looks up each property of a tool among the required ones
takes a quarter of a second."""
MOST_ARGUMENTS: Final = 32_768
"""Values in the arguments of all calls of tools in a conversation, which vLLM parses for the template."""
MOST_ITEMS: Final = 2048
"""Prompts, texts or conversations of one request, as in OpenAI's API; each is a request of its own in the engine."""
TEMPLATE: Final = "chat_template"
VARIABLES: Final = "chat_template_kwargs"
_CONVERSATIONS: Final = ("messages", "input")
"""Of chats, and of responses; `input` of embeddings has texts or numbers."""
_SCHEMAS: Final = (
    *("tools", "functions", "tool_choice", "documents", "system"),
    *("response_format", "structured_outputs", "text", "output_config", "stop"),
    *("media_io_kwargs", "mm_processor_kwargs"),
)
"""Fields that templates, grammars and processors of media get, besides conversations and VARIABLES."""
_ITEMS: Final = (
    *("prompt", "prompt_embeds", "input", "messages"),
    *("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2"),
)
"""Fields that may have several prompts, texts or conversations."""


def check_conversation(body: Mapping[str, Any], content: bytes | bytearray) -> None:
    """Raise InvalidInput if a request has its own chat template, or is larger than templates and engines are given.

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
    for field in _SCHEMAS:
        _check_count(field, "values", _count_values(body.get(field)), MOST_SCHEMA_VALUES)
    for field in _ITEMS:
        _check_count(field, "items", _count_items(field, body.get(field)), MOST_ITEMS)
    has_many = content.count(b"{") > MOST_OBJECTS
    for field in _CONVERSATIONS:
        messages = body.get(field)
        if isinstance(messages, list) and messages and isinstance(messages[0], dict | list):
            _check_messages(field, messages, has_many=has_many)


def _check_messages(field: str, messages: list[Any], *, has_many: bool) -> None:
    _check_count(field, "messages", _count_messages(messages), MOST_MESSAGES)
    if has_many:
        _check_count(field, "objects", _count_objects(messages), MOST_OBJECTS)
    each = [message for message in _each_message(messages) if isinstance(message, dict)]
    tools = sum(_count_values(message.get("tools")) for message in each)
    _check_count(f"{field}.tools", "values", tools, MOST_SCHEMA_VALUES)
    arguments = sum(_count_arguments(call) for message in each for call in _calls(message))
    _check_count(f"{field}.arguments", "values", arguments, MOST_ARGUMENTS)


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


def _each_message(messages: list[Any]) -> Iterator[Any]:
    """Yield the messages of one conversation, or of several; of prompts by their numbers nothing."""
    if isinstance(messages[0], dict):
        yield from messages
        return
    for one in messages:
        if isinstance(one, list) and one and isinstance(one[0], dict):
            yield from one


def _calls(message: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the arguments of the calls of tools in a message, as JSON texts or parsed.

    Chats have them in `tool_calls`, responses in items of their own, Anthropic's messages in parts.
    """
    yield message.get("arguments")
    for call in _objects_in(message.get("tool_calls")):
        if isinstance(function := call.get("function"), dict):
            yield function.get("arguments")
    for part in _objects_in(message.get("content")):
        yield part.get("input")


def _objects_in(value: object) -> Iterator[Mapping[str, Any]]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())


def _count_arguments(arguments: object) -> int:
    return most_values(arguments) if isinstance(arguments, str) else _count_values(arguments)


def _count_items(field: str, value: object) -> int:
    """Return the number of prompts, texts or conversations; 1 for a text, numbers or messages."""
    if not isinstance(value, list) or not value or isinstance(value[0], int):
        return 1
    return 1 if field in _CONVERSATIONS and isinstance(value[0], dict) else len(value)


def _count_objects(messages: list[Any]) -> int:
    """Return the number of objects at all levels."""
    return sum(isinstance(one, dict) for one in _containers(messages))


def _count_values(value: object) -> int:
    """Return the number of values at all levels: members of objects and entries of lists."""
    return sum(len(one) for one in _containers(value))


def _containers(value: object) -> Iterator[dict[str, Any] | list[Any]]:
    """Yield the objects and lists at all levels, the outermost first."""
    found = [value] if isinstance(value, dict | list) else []
    while found:
        yield (one := found.pop())
        members = one.values() if isinstance(one, dict) else one
        found += [member for member in members if isinstance(member, dict | list)]
