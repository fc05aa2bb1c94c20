"""A client can't make an engine render a template of its own, or a conversation without bound."""

import json

import pytest

from ipnext.errors import InvalidInput
from serving.openai.conversation_size import (
    MOST_ARGUMENTS,
    MOST_DOCUMENTS,
    MOST_ITEMS,
    MOST_MESSAGES,
    MOST_OBJECTS,
    MOST_SCHEMA_VALUES,
    MOST_TOOLS,
    MOST_VALUES,
    check_conversation,
)
from tests.serving.openai.conftest import raw_engine

MESSAGE = {"role": "user", "content": "hello"}


def check(**body):
    check_conversation(body, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [MESSAGE], "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": [MESSAGE], "chat_template": ""}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template"),
    ],
)
def test_a_template_of_the_client_is_refused(body, field):
    with pytest.raises(InvalidInput, match=rf"^{field}: must be left out") as refused:
        check(**body)
    assert refused.value.field == field


PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}] * 7}
"""Eight objects."""


def tool(values, *, required=0):
    """A tool of so many values, some of them names of required properties."""
    properties = {f"p{number}": {} for number in range(values - required - 6)}
    schema = {"properties": properties, "required": ["q"] * required}
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def call(values, **more):
    """The arguments of a call of a tool, a JSON text of so many values."""
    return {"arguments": json.dumps({f"a{number}": "b" for number in range(values)}), **more}


def calls(*arguments):
    return [{"role": "assistant", "tool_calls": [{"type": "function", "function": one}]} for one in arguments]


LARGEST = {
    "values of a tool": {"messages": [MESSAGE], "tools": [tool(MOST_SCHEMA_VALUES - 1, required=4000)]},
    "values of documents": {"messages": [MESSAGE], "documents": [{"a": [1] * (MOST_SCHEMA_VALUES - 2)}]},
    "a form of the answer": {"messages": [MESSAGE], "response_format": {"a": [1] * (MOST_SCHEMA_VALUES - 1)}},
    "arguments": {"messages": calls(call(MOST_ARGUMENTS // 2), call(MOST_ARGUMENTS // 2))},
    "commas in a text of a call": {
        "messages": calls({"arguments": json.dumps({"code": 'a, "b", {' * MOST_ARGUMENTS})})
    },
    "prompts": {"prompt": ["text"] * MOST_ITEMS},
    "numbers of a prompt": {"prompt": list(range(100_000))},
    "conversations": {"messages": [[MESSAGE]] * MOST_ITEMS},
    "messages": {"messages": [MESSAGE] * MOST_MESSAGES},
    "several conversations": {"messages": [[MESSAGE] * (MOST_MESSAGES // 2)] * 2},
    "a response": {"input": [MESSAGE] * MOST_MESSAGES},
    "parts": {"messages": [PARTS] * (MOST_OBJECTS // 8)},
    "parts of a response": {"input": [PARTS] * (MOST_OBJECTS // 8)},
    "tools": {"messages": [MESSAGE], "tools": [{"type": "function"}] * MOST_TOOLS},
    "documents": {"messages": [MESSAGE], "documents": [{"text": "a"}] * MOST_DOCUMENTS},
    "variables": {"chat_template_kwargs": {"a": {"b": [1] * (MOST_VALUES - 2)}}},
}
ONE_MORE = {
    "properties and required": (
        {"messages": [MESSAGE], "tools": [tool(40_005, required=20_000)]},
        "tools: must have at most 8192 values, got 40006",
    ),
    "values of a tool": (
        {"messages": [MESSAGE], "tools": [tool(MOST_SCHEMA_VALUES)]},
        "tools: must have at most 8192 values, got 8193",
    ),
    "tools of a message": (
        {"messages": [{"role": "developer", "tools": [tool(MOST_SCHEMA_VALUES)]}]},
        "messages.tools: must have at most 8192 values, got 8193",
    ),
    "arguments": (
        {"messages": calls(call(MOST_ARGUMENTS // 2), call(MOST_ARGUMENTS // 2 + 1))},
        "messages.arguments: must have at most 32768 values, got 32769",
    ),
    "arguments of a response": (
        {"input": [call(MOST_ARGUMENTS + 1, type="function_call")]},
        "input.arguments: must have at most 32768 values, got 32769",
    ),
    "arguments of Anthropic's messages": (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"a": [1] * MOST_ARGUMENTS}}]}]},
        "messages.arguments: must have at most 32768 values, got 32769",
    ),
    "conversations": (
        {"messages": [[MESSAGE]] * (MOST_ITEMS + 1)},
        "messages: must have at most 2048 items, got 2049",
    ),
    **{
        f"values of {field}": (
            {"messages": [MESSAGE], field: {"a": [1] * MOST_SCHEMA_VALUES}},
            f"{field}: must have at most 8192 values, got 8193",
        )
        for field in ("documents", "functions", "tool_choice", "response_format", "structured_outputs", "text")
    },
    **{
        f"several of {field}": (
            {field: ["text"] * (MOST_ITEMS + 1)},
            f"{field}: must have at most 2048 items, got 2049",
        )
        for field in ("prompt", "input", "text_1", "text_2", "queries", "documents", "items", "data_1", "data_2")
    },
    "prompts by their numbers": ({"prompt": [[1]] * 2049}, "prompt: must have at most 2048 items, got 2049"),
    "texts with media": ({"data_1": [{"content": []}] * 2049}, "data_1: must have at most 2048 items, got 2049"),
    "messages": ({"messages": [MESSAGE] * (MOST_MESSAGES + 1)}, "messages: must have at most 4096 messages, got 4097"),
    "several conversations": (
        {"messages": [[MESSAGE] * MOST_MESSAGES, [MESSAGE]]},
        "messages: must have at most 4096 messages, got 4097",
    ),
    "a response": ({"input": [MESSAGE] * (MOST_MESSAGES + 1)}, "input: must have at most 4096 messages, got 4097"),
    "parts": (
        {"messages": [*([PARTS] * (MOST_OBJECTS // 8)), MESSAGE]},
        "messages: must have at most 16384 objects, got 16385",
    ),
    "parts of a response": (
        {"input": [*([PARTS] * (MOST_OBJECTS // 8)), MESSAGE]},
        "input: must have at most 16384 objects, got 16385",
    ),
    "tools": (
        {"messages": [MESSAGE], "tools": [{"type": "function"}] * (MOST_TOOLS + 1)},
        "tools: must have at most 1024 entries, got 1025",
    ),
    "documents": (
        {"messages": [MESSAGE], "documents": [{"text": "a"}] * (MOST_DOCUMENTS + 1)},
        "documents: must have at most 1024 entries, got 1025",
    ),
    "variables": (
        {"chat_template_kwargs": {"a": {"b": [1] * (MOST_VALUES - 1)}}},
        "chat_template_kwargs: must have at most 1024 values, got 1025",
    ),
}


@pytest.mark.parametrize("form", LARGEST)
def test_a_conversation_of_the_largest_size_is_accepted(form):
    check(**LARGEST[form])


@pytest.mark.parametrize("form", ONE_MORE)
def test_a_larger_one_is_refused_with_its_field_and_the_limit(form):
    body, told = ONE_MORE[form]
    with pytest.raises(InvalidInput) as refused:
        check(**body)
    assert refused.value.message == told
    assert refused.value.field == told.partition(":")[0]


@pytest.mark.parametrize(
    "body",
    [
        {"input": list(range(100_000))},
        {"input": [[1] * 10_000] * 10},
        {"input": ["text"] * 2_048},
        {"documents": ["text"] * 2_048, "query": "rerank"},
        {"messages": [{"role": "user", "content": "{" * 100_000}]},
        {"messages": []},
        {"messages": "no list", "tools": None, "chat_template_kwargs": None, "chat_template": None},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_other_requests_are_not_conversations(body):
    check(**body)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize", "/pooling"])
async def test_a_refused_conversation_reaches_no_engine(edge, client, path):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with raw_engine(script) as engine:
        edge.serve(engine.url)
        for field, more in (("chat_template", {"chat_template": "x"}), ("messages", ONE_MORE["messages"][0])):
            answer = await client.post(edge.url + path, json={"model": "llm", "messages": [MESSAGE], **more})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == field
        assert engine.requests == []
