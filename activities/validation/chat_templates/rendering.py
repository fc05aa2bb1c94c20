"""Compiles chat templates as transformers does, and renders sample conversations. Runs in a process of its own.

A template is a program of a stranger: the process (`activities.validation.chat_templates.process`) limits its time and
memory.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any, Final

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

LARGEST_OUTPUT: Final = 4 << 20
"""Most characters of a prompt. The sample conversations have up to 64 Ki."""
TURNS: Final = (64, 256)
MOST_ALIASES: Final = 4096
"""Most paths along which `messages` is assigned to variables; known models have two."""
LONG_MESSAGE: Final = 32 << 10
"""Characters of the longest sample message."""
_OTHER_TEMPLATES: Final = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)

Message = Mapping[str, Any]


class ForbiddenAttribute(SecurityError):
    """A template asks for an attribute that leads out of the sandbox."""


class TemplateFault(Exception):
    """A template that is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A sample conversation."""

    name: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    generates: bool = True
    """Whether the prompt ends with the begin of an answer."""

    @property
    def variables(self) -> Mapping[str, Any]:
        """Variables of a template."""
        given = {"messages": self.messages, "tools": self.tools, "documents": None}
        return {**given, "add_generation_prompt": self.generates}


@dataclass(frozen=True, slots=True)
class Limits:
    """Sets the limit of processor time of each step. Both functions are called by `find_fault`."""

    begin: Callable[[str], None]
    """Called before each step, with its description: compiling, and each conversation."""
    end: Callable[[], None] = field(default=lambda: None)


def find_fault(text: str, special_tokens: Mapping[str, str], limits: Limits) -> str | None:
    """Return the fault of a template; None if it renders all samples within the limits, or refuses some of them.

    Raises MemoryError.
    """
    try:
        limits.begin("compiling")
        template = compile_template(text)
        for conversation in sample_conversations():
            limits.begin(f"rendering {conversation.name}")
            _render(template, conversation, special_tokens)
    except TemplateFault as fault:
        return str(fault)
    finally:
        limits.end()
    return None


def compile_template(text: str) -> Template:
    """Return the compiled template. Raises TemplateFault and MemoryError."""
    environment = _Environment()
    try:
        parsed = environment.parse(text)
        _check_nodes(parsed)
        _check_aliases(parsed)
        return environment.from_string(parsed)
    except TemplateSyntaxError as error:
        msg = f"line {error.lineno}: {error.message}"
        raise TemplateFault(msg) from error
    except (MemoryError, TemplateFault):
        raise
    except Exception as error:
        msg = f"can't be compiled: {type(error).__name__}: {error}"
        raise TemplateFault(msg) from error


def _check_nodes(parsed: nodes.Template) -> None:
    """Raise TemplateFault if a template reads another one: a checkpoint has none by that name."""
    other = next(parsed.find_all(_OTHER_TEMPLATES), None)
    if other is not None:
        msg = f"line {other.lineno}: {type(other).__name__.lower()} of another template; allowed: macros of its own"
        raise TemplateFault(msg)


def _check_aliases(parsed: nodes.Template) -> None:
    """Raise TemplateFault for variables that vLLM 0.32 would follow without end.

    To find the loops over messages, it follows each assignment of one variable to another, along every path.
    """
    assigned: dict[str, list[str]] = {}
    for assignment in parsed.find_all(nodes.Assign):
        source, target = _variable_of(assignment.node), assignment.target
        if source is not None and isinstance(target, nodes.Name) and target.name != source:
            assigned.setdefault(source, []).append(target.name)
    followed, waiting = 0, deque(["messages"])
    while waiting:
        followed += 1
        if followed > MOST_ALIASES:
            msg = (
                "assigns `messages` to variables in a circle, or along too many paths, which vLLM follows without end; "
            )
            raise TemplateFault(msg + f"allowed: {MOST_ALIASES} paths")
        waiting.extend(assigned.get(waiting.popleft(), ()))


def _variable_of(node: nodes.Node | None) -> str | None:
    """Return the variable that an expression is, or a slice or a filter of."""
    while isinstance(node, nodes.Filter | nodes.Test | nodes.Getitem):
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
            return None
        node = node.node
    return node.name if isinstance(node, nodes.Name) else None


def _render(template: Template, conversation: Conversation, special_tokens: Mapping[str, str]) -> None:
    """Render a conversation. TemplateFault, MemoryError. A template may refuse a conversation by any other error."""
    try:
        sizes = map(len, template.generate({**special_tokens, **conversation.variables}))
        is_too_long = any(size > LARGEST_OUTPUT for size in accumulate(sizes))
    except ForbiddenAttribute as error:
        msg = f"rendering {conversation.name} {error.message}"
        raise TemplateFault(msg) from error
    except RecursionError as error:
        msg = f"rendering {conversation.name} calls macros within each other without end"
        raise TemplateFault(msg) from error
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - many templates refuse roles, and raise whatever they like
        return
    if is_too_long:
        msg = f"rendering {conversation.name} gives more than {LARGEST_OUTPUT} characters"
        raise TemplateFault(msg)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment that transformers renders chat templates in, without access to its own objects."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _format_now

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether an attribute may be used. One that leads out of the sandbox ends the rendering."""
        if not SandboxedEnvironment.is_safe_attribute(self, obj, attr, value):
            msg = f"asks for the attribute {attr!r} of a {type(obj).__name__}, which the sandbox forbids"
            raise ForbiddenAttribute(msg)
        return super().is_safe_attribute(obj, attr, value)


class _Generation(Extension):
    """The tag `generation`, by which training finds what the model writes: the block is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block as a call with its content."""
        line = next(parser.stream).lineno
        content = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_repeat"), [], [], content).set_lineno(line)

    def _repeat(self, caller: Macro) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _format_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - local time, as transformers has it


def sample_conversations() -> Iterator[Conversation]:
    """Yield the conversations that each template is rendered with."""
    system: Message = {"role": "system", "content": "Answer in one sentence."}
    one, tools = [_user(0)], [_tool(name) for name in ("weather", "search", "calculate", "book")]
    yield Conversation("one message", one)
    yield Conversation("one message without a begun answer", one, generates=False)
    yield Conversation("a system prompt and three turns", [system, *_turns(2), _user(2)])
    for count in TURNS:
        yield Conversation(f"{count} turns", _turns(count))
    yield Conversation("one message with tools", one, tools)
    for count in TURNS:
        yield Conversation(f"{count} turns with tools", [system, *_tool_turns(count)], tools)
    yield Conversation("one message in parts", [_parts(0)])
    yield Conversation(f"{TURNS[0]} turns in parts", [_parts(turn) for turn in range(TURNS[0])])
    text = ("The quick brown fox jumps over the lazy dog.\n" * LONG_MESSAGE)[:LONG_MESSAGE]
    yield Conversation("one long message", [{"role": "user", "content": text}])


def _user(turn: int) -> Message:
    return {"role": "user", "content": f"What is the capital of country {turn}, and how many people live there?"}


def _assistant(turn: int) -> Message:
    return {"role": "assistant", "content": f"<think>\nCountry {turn}.\n</think>\n\nIts capital is town {turn}."}


def _turns(count: int) -> Sequence[Message]:
    return [_assistant(turn) if turn % 2 else _user(turn) for turn in range(count)]


def _parts(turn: int) -> Message:
    image = {"type": "image"} if turn == 0 else {"type": "text", "text": "Please."}
    return {**_turns(turn + 1)[turn], "content": [{"type": "text", "text": f"Look at this: {turn}."}, image]}


def _tool_turns(count: int) -> Sequence[Message]:
    """Return rounds of a question, a call, its result and an answer."""
    found: list[Message] = []
    for turn in range(0, count, 4):
        arguments = {"city": f"town {turn}", "days": [1, 2, 3]}
        call = {"id": f"call{turn:05}", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": call["id"], "name": "weather", "content": '{"celsius": 21}'}
        found += [
            _user(turn),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            result,
            _assistant(turn),
        ]
    return found


def _tool(name: str) -> Mapping[str, Any]:
    days = {"type": "array", "items": {"type": "integer", "minimum": 1}, "description": "Days from now."}
    place = {"type": "object", "properties": {"name": {"type": "string"}, "days": days}, "required": ["name"]}
    properties = {"city": {"type": "string", "description": "A city.", "enum": ["Bern", "Rome"]}, "place": place}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    description = f"Use {name} for a city and a place."
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
