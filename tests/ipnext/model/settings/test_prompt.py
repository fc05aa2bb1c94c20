"""Templates of prompts as they are written: what their places may be, and what they take."""

import re

import pytest
from pydantic import ValidationError

from ipnext.model.registry.registry import GraphNode, PartGraph
from ipnext.model.settings.prompt import PromptTemplate, pieces

DOCUMENTS = {"item": "[{number}] {text} ({score})\n", "order": "score", "top": 3}


def test_a_template_tells_what_it_takes():
    prompt = PromptTemplate(template="In {country}:\n{documents}\n{prompt}", lists={"documents": DOCUMENTS})
    assert prompt.inputs == {"prompt", "country", "text", "score"}
    assert prompt.orders == {"score"}


def test_braces_of_the_text_itself_are_written_twice():
    assert list(pieces("{{{a}}} b")) == [("{", None), ("", "a"), ("}", None), (" b", None)]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"template": "{documents}", "lists": {"documents": DOCUMENTS}}, r"template: has no place \{prompt\}"),
        ({"template": "{prompt} {"}, "template: .* a brace of the text itself is written twice"),
        ({"template": "{prompt.__class__}"}, r"template: \{prompt.__class__\} is no place"),
        ({"template": "{prompt[0]}"}, r"template: \{prompt\[0\]\} is no place"),
        ({"template": "{prompt!r}"}, r"template: \{prompt!r\} is no place"),
        ({"template": "{prompt:>99999999}"}, r"template: \{prompt:>99999999\} is no place"),
        ({"template": "{prompt}{}"}, r"template: \{\} is no place"),
        ({"template": "{prompt}", "lists": {"documents": DOCUMENTS}}, "lists.documents: the template has no place"),
        ({"template": "{prompt}{a}", "lists": {"a": {"item": "{number}"}}}, "lists.a.item: names no input of the node"),
        ({"template": "{prompt}{a}", "lists": {"a": {"item": "{prompt}"}}}, r"lists.a: \['prompt'\] have their place"),
        ({"template": "{prompt}{a}", "lists": {"a": {"item": "{b!s}"}}}, r"lists.a.item: \{b!s\} is no place"),
        ({"template": "{prompt}{a}", "lists": {"a": {"item": "{b}", "top": 0}}}, "lists.a.top"),
        ({"template": "{prompt}{a}", "lists": {"a": {"item": "{b}", "sort": "b"}}}, "lists.a.sort"),
    ],
)
def test_what_is_no_template_is_refused_by_field(given, text):
    with pytest.raises(ValidationError) as refused:
        PromptTemplate.model_validate(given)
    fault = refused.value.errors()[0]
    told = ".".join((*map(str, fault["loc"]), "")) + fault["msg"].removeprefix("Value error, ")
    assert re.search(text, told), told


def node(inputs, **prompt):
    return GraphNode(name="generate", part="llm", inputs=inputs, prompt=prompt or None)


def test_a_prompt_and_the_inputs_of_its_node_name_the_same():
    inputs = {"prompt": "request.prompt", "text": "request.documents"}
    with pytest.raises(
        ValidationError, match=r"generate.prompt: 'country' is no input of the node; its inputs: \['prompt', 'text'\]"
    ):
        node(inputs, template="{prompt}{country}{text}")
    with pytest.raises(ValidationError, match=r"generate\.inputs\.text: the node's prompt has no place for it"):
        node(inputs, template="{prompt}")


def test_a_graph_without_a_prompt_is_written_as_it_was_before_there_were_any():
    graph = PartGraph(nodes=(node({"prompt": "request.prompt"}),), outputs={"text": "generate.text"})
    assert set(graph.model_dump()["nodes"][0]) == {"name", "part", "inputs"}
    with_prompt = node({"prompt": "request.prompt"}, template="{prompt}!")
    assert GraphNode.model_validate_json(with_prompt.model_dump_json()) == with_prompt
