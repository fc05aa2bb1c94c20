"""Media in a request: an engine is sent none that it would have to fetch."""

import json
import tracemalloc

import pytest

from ipnext.errors import InvalidInput
from serving.openai.media_urls import check_media
from tests.serving.openai.conftest import raw_engine

INLINE = "data:image/png;base64,iVBORw0KGgo="
AWAY = "http://169.254.169.254/latest/meta-data"


def chat(*parts):
    return {
        "model": "llm",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, *parts]}],
    }


def check(body):
    check_media(body, json.dumps(body).encode())


FORMS = {
    "image": (chat({"type": "image_url", "image_url": {"url": AWAY}}), "messages.0.content.1.image_url"),
    "plain image": (chat({"image_url": AWAY}), "messages.0.content.1.image_url"),
    "audio": (chat({"type": "audio_url", "audio_url": {"url": AWAY}}), "messages.0.content.1.audio_url"),
    "video": (chat({"type": "video_url", "video_url": AWAY}), "messages.0.content.1.video_url"),
    "flat": (chat({"type": "image_url", "url": AWAY}), "messages.0.content.1.url"),
    "response": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": AWAY}]}]},
        "input.0.content.0.image_url",
    ),
    "file": ({"input": [{"content": [{"type": "input_file", "file_url": AWAY}]}]}, "input.0.content.0.file_url"),
    "message": (
        {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": AWAY}}]}]},
        "messages.0.content.0.source",
    ),
    "score": (
        {"data_1": {"content": [{"type": "image_url", "image_url": {"url": AWAY}}]}, "data_2": "x"},
        "data_1.content.0.image_url",
    ),
    "batch": ({"messages": [[{"content": [{"image_url": {"url": AWAY}}]}]]}, "messages.0.0.content.0.image_url"),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_address_is_refused_in_every_form_and_its_place_named(form):
    body, place = FORMS[form]
    with pytest.raises(InvalidInput, match="engines fetch nothing") as refused:
        check(body)
    assert refused.value.field == place
    inline = json.loads(json.dumps(body).replace(AWAY, INLINE))
    check(inline)


NAMED = {
    "image": (chat({"type": "image_url", "image_url": {"url": INLINE}, "uuid": "1"}), "messages.0.content.1.uuid"),
    "of no media": (chat({"type": "image_url", "image_url": None, "uuid": "1"}), "messages.0.content.1.uuid"),
    "of any kind": (chat({"type": "holo", "holo": "x", "uuid": 1}), "messages.0.content.1.uuid"),
    "response": ({"input": [{"type": "input_image", "image_url": INLINE, "uuid": "1"}]}, "input.0.uuid"),
    "score": ({"data_1": {"content": [{"image_embeds": None, "uuid": ""}]}}, "data_1.content.0.uuid"),
}


@pytest.mark.parametrize("form", NAMED)
def test_media_bear_no_name_by_which_engines_keep_them_for_all_clients(form):
    body, place = NAMED[form]
    for content in (json.dumps(body), json.dumps(body).replace("uuid", "\\u0075uid")):
        with pytest.raises(InvalidInput, match="engines keep media by it for all clients") as refused:
            check_media(json.loads(content), content.encode())
        assert refused.value.field == place


@pytest.mark.parametrize(
    "url", ["https://example.com/x.png", "HTTP://x", "file:///etc/passwd", " data:x", "//host/x", "ftp://x"]
)
def test_only_data_is_no_address(url):
    with pytest.raises(InvalidInput):
        check(chat({"image_url": {"url": url}}))
    check(chat({"image_url": {"url": "DATA:image/png;base64,AA=="}}))


def test_names_that_are_spelt_with_escapes_are_read():
    text = json.dumps(chat({"image_url": AWAY})).replace("image_url", "image_\\u0075rl")
    with pytest.raises(InvalidInput):
        check_media(json.loads(text), text.encode())


def test_texts_and_schemas_of_tools_may_name_addresses():
    schema = {"type": "object", "properties": {"image_url": {"type": "string"}, "url": {"type": "string"}}}
    check(
        {
            **chat({"type": "text", "text": f"is {AWAY} up?"}),
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            "metadata": {"url": AWAY, "source": AWAY, "uuid": "1"},
            "prompt": [1, 2, 3],
        }
    )


def test_a_long_address_is_cut_in_the_answer():
    with pytest.raises(InvalidInput) as refused:
        check(chat({"image_url": "http://" + "x" * 10_000}))
    assert len(refused.value.message) < 400


def test_a_long_place_is_cut_in_the_answer():
    name = "k" * 2**21
    for body in ({name: {"image_url": AWAY}}, {"a": {name: [{"image_url": AWAY}]}}, chat({"x": {"image_url": AWAY}})):
        with pytest.raises(InvalidInput) as refused:
            check(body)
        assert len(refused.value.field) <= 200
        assert len(refused.value.message) < 500
    assert refused.value.field == "messages.0.content.1.x.image_url"


@pytest.mark.parametrize("member", [[], {}, {"a": 1, "b": 2}])
def test_a_long_name_is_not_repeated_for_what_it_contains(member):
    name = "k" * 2**17
    body = {"url": 1, name: [member] * 1000, "m": {name: {str(n): [] for n in range(1000)}}}
    tracemalloc.start()
    try:
        check_media(body, b"url")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


async def test_no_engine_is_asked(edge, client, listeners):
    asked = []

    async def answer(method, path, body, writer):
        asked.append(json.loads(body))
        content = b'{"choices": [], "model": "llm"}'
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content
        )

    async with raw_engine(answer) as engine:
        edge.serve(engine.url)
        url = f"{edge.url}/v1/chat/completions"
        refused = await client.post(url, json=chat({"image_url": {"url": AWAY}}))
        error = refused.json()["error"]
        assert (refused.status_code, error["type"]) == (400, "BadRequestError")
        assert error["param"] == "messages.0.content.1.image_url"
        assert asked == []
        assert (await client.post(url, json=chat({"image_url": {"url": INLINE}}))).status_code == 200
        assert len(asked) == 1
