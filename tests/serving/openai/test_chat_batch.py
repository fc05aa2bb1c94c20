"""Several conversations in one request: one engine of one generation answers all of them."""

import pytest

from ipnext.model.deployment.router_table import RoutedModel
from serving.openai.engines.prefix_affinity import BLOCK_CHARACTERS, blocks_of, prompt_of
from tests.serving.openai.conftest import endpoint, mock_engine, served

BATCH = "/v1/chat/completions/batch"


def conversation(*texts):
    return [{"role": "user", "content": text} for text in texts]


def ask(**more):
    return {"model": "llm", "messages": [conversation("a"), conversation("b", "c")], "max_tokens": 2, **more}


async def test_each_conversation_has_a_choice_and_the_answer_one_generation(edge, engine, client):
    edge.serve(engine)
    answer = await client.post(edge.url + BATCH, json=ask())
    assert answer.status_code == 200
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1]
    assert answer.json()["model"] == "llm"
    assert (answer.headers["x-ipnext-generation"], answer.headers["x-ipnext-snapshots"]) == ("1", "llm=10")
    assert edge.counts().answers[200].seconds.count == 1


async def test_a_generation_that_is_pinned_answers_all_of_them(edge, client):
    with mock_engine(name="old") as old, mock_engine(name="new") as new:
        generations = (served(1, snapshot=10), served(2, snapshot=11))
        edge.table(RoutedModel(model="llm", served=generations, endpoints=(endpoint(old, 1), endpoint(new, 2))))
        for generation, word in ((1, "old"), (2, "new")):
            headers = {"x-ipnext-generation": str(generation)}
            answer = await client.post(edge.url + BATCH, json=ask(), headers=headers)
            texts = {choice["message"]["content"] for choice in answer.json()["choices"]}
            assert texts == {f"{word}-0 {word}-1"}


@pytest.mark.parametrize("more", [{"stream": True}, {"tools": [{"type": "function", "function": {"name": "f"}}]}])
async def test_what_an_engine_would_overlook_is_refused_in_words(edge, engine, client, more):
    edge.serve(engine)
    answer = await client.post(edge.url + BATCH, json=ask(**more))
    (field,) = more
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", field, 400)
    assert "leave it out, or ask each conversation at /v1/chat/completions" in error["message"]
    assert (await client.post(edge.url + BATCH, json=ask(stream=False, tools=[]))).status_code == 200


async def test_an_unknown_model_is_refused_as_everywhere(edge, engine, client):
    edge.serve(engine)
    answer = await client.post(edge.url + BATCH, json=ask(model="nobody"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_the_beginning_of_a_batch_is_that_of_its_first_conversation():
    first, other = conversation("x" * 3 * BLOCK_CHARACTERS), conversation("y" * 3 * BLOCK_CHARACTERS)
    alone, both = (blocks_of("m", prompt_of({"messages": messages})) for messages in (first, [first, other]))
    assert alone == both[: len(alone)]
    assert len(both) > len(alone) > 0
