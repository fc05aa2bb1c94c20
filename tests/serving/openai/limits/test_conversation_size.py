"""A client can't make an engine render a template of its own, or a conversation without bound."""

import json

import pytest

from ipnext.errors import InvalidInput
from serving.openai.conversation_size import (
    MOST_DOCUMENTS,
    MOST_MESSAGES,
    MOST_OBJECTS,
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
LARGEST = {
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
        {"input": ["text"] * 10_000},
        {"documents": ["text"] * 10_000, "query": "rerank"},
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
