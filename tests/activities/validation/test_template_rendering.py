"""Chat templates are compiled as transformers does; sample conversations show what they do."""

import json

import pytest

from activities.validation.chat_templates.rendering import (
    LARGEST_OUTPUT,
    Limits,
    TemplateFault,
    compile_template,
    find_fault,
    sample_conversations,
)
from tests.activities.validation.chat_templates import ALTERNATING, CHATML, HEADERS, KNOWN, TOOLS

pytestmark = pytest.mark.trust

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def fault(text, tokens=TOKENS):
    return find_fault(text, tokens, Limits(lambda _: None))


def rendered(text, **variables):
    return compile_template(text).render(**variables)


def sample(name):
    return next(each for each in sample_conversations() if each.name == name).variables


@pytest.mark.parametrize("name", KNOWN)
def test_a_template_in_the_style_of_a_known_model_has_no_fault(name):
    assert fault(KNOWN[name]) is None


def test_samples_are_rendered_and_not_refused_by_such_templates():
    """So that a pass tells something."""
    for name in ("one message", "a system prompt and three turns", "64 turns", "256 turns"):
        assert "capital of country 0" in rendered(CHATML, **sample(name))
    for name in ("one message in parts", "64 turns in parts", "one long message", "256 turns with tools"):
        assert rendered(HEADERS, **TOKENS, **sample(name)).startswith("<s><|start_header_id|>system")
    assert rendered(TOOLS, **sample("256 turns with tools")).count("<tool_call>") == 64
    assert rendered(ALTERNATING, **sample("256 turns")).count("<start_of_turn>") == 256


def test_each_step_is_announced_before_it_begins():
    steps = []
    find_fault(CHATML, TOKENS, Limits(steps.append, lambda: steps.append("end")))
    assert steps[0] == "compiling"
    assert steps[1:-1] == [f"rendering {each.name}" for each in sample_conversations()]
    assert steps[-1] == "end"


def test_the_environment_is_that_of_transformers():
    assert rendered("{% if true %}\n    a\n    {% endif %}\n") == "    a\n"  # trim_blocks, lstrip_blocks
    assert rendered("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}") == "1"
    assert rendered("{% generation %}a{% endgeneration %}b") == "ab"
    assert rendered("{{ {'b': '<ü>', 'a': 1} | tojson }}") == '{"b": "<ü>", "a": 1}'
    text = "{{ {'b': [1], 'a': 'ü'} | tojson(ensure_ascii=true, indent=2, separators=(',', ':'), sort_keys=true) }}"
    assert rendered(text) == json.dumps({"b": [1], "a": "ü"}, indent=2, separators=(",", ":"), sort_keys=True)
    assert len(rendered("{{ strftime_now('%Y') }}")) == 4


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('no') }}",
        "{{ a.b.c }}",
        "{{ 'a' + messages[0] }}",
        "{{ 1 // 0 }}",
        "{{ range(10**9) | length }}",
        "{{ messages.append(1) }}",
        "",
    ],
)
def test_a_template_that_refuses_the_samples_has_no_fault(text):
    assert fault(text) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\n{% if x %}\nb", r"^line 3: Unexpected end of template"),
        ("a\n{{ x | absent }}", r"^line 2: No filter named 'absent'"),
        ("a\n{% include 'other.jinja' %}", r"^line 2: include of another template; allowed: macros of its own"),
        ("{% import 'other.jinja' as o %}", r"^line 1: import of another template"),
        ("{% from 'other.jinja' import o %}", r"^line 1: fromimport of another template"),
        ("\n\n{% extends 'other.jinja' %}", r"^line 3: extends of another template"),
        ("{% if false %}{% include name %}{% endif %}", r"^line 1: include of another template"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, r"^can't be compiled: SyntaxError: too many statically nested"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", r"^can't be compiled: RecursionError"),
    ],
)
def test_a_template_that_does_not_compile_is_refused_with_its_line(text, told):
    with pytest.raises(TemplateFault, match=told):
        compile_template(text)


DOUBLING = "".join(
    f"{{% set {name}{number + 1} = {source}{number} %}}" for number in range(20) for name in "ab" for source in "ab"
)


@pytest.mark.parametrize(
    "text",
    [
        "{% set a = messages %}{% set messages = a %}",
        "{% set a = messages[1:] %}{% if a %}{% set b = a | list %}{% set a = b %}{% endif %}",
        "{% set a0 = messages %}{% set b0 = messages %}" + DOUBLING,
    ],
)
def test_variables_that_vllm_would_follow_without_end_are_refused(text):
    with pytest.raises(TemplateFault, match=r"^assigns `messages` to variables in a circle, .* allowed: 4096 paths"):
        compile_template(text)


@pytest.mark.parametrize(
    "text",
    [
        "{% set messages = messages[1:] %}{% set loop_messages = messages %}",
        "{% set first = messages[0] %}{% set messages = first %}",
        "{% set a = b %}{% set b = a %}",
        "{% set ns = namespace(x=1) %}{% set ns.x = messages %}",
    ],
)
def test_other_assignments_are_no_fault(text):
    compile_template(text)


ATTACKS = (
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__ }}",
    "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% if ''.__class__ is defined %}{% endif %}",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_a_way_out_of_the_sandbox_is_refused(text):
    told = fault(text) or ""
    assert told.startswith("rendering one message asks for the attribute '__")
    assert told.endswith("which the sandbox forbids")


def test_a_macro_that_calls_itself_without_end_is_refused():
    told = fault("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}")
    assert told == "rendering one message calls macros within each other without end"


def test_an_output_without_bound_is_refused():
    told = fault("{% for a in range(99999) %}{{ 'x' * 100 }}{% endfor %}")
    assert told == f"rendering one message gives more than {LARGEST_OUTPUT} characters"


def test_special_tokens_count_as_output():
    text = "{% for message in messages %}{{ bos_token }}{% endfor %}"
    assert fault(text, {"bos_token": "<s>"}) is None
    assert fault(text, {"bos_token": "x" * (LARGEST_OUTPUT // 64)}) == (
        f"rendering 256 turns gives more than {LARGEST_OUTPUT} characters"
    )
