"""Builds the prompt of a generative node from its input tensors, and puts it into the request's body. Pure."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from ipnext.errors import InvalidInput
from ipnext.model.settings.prompt import NUMBER, PromptList, PromptTemplate, pieces
from serving.protocol.response_templates import NotFinite
from serving.protocol.tensors import FLOATS, Array, Tensor, all_finite, bf16_to_float32

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETIONS_PATH: Final = "/v1/completions"
_FLOAT_FORM: Final = ".6g"

Body = Mapping[str, Any]


def extract_prompt(path: str, body: Body) -> str:
    """Return the client's prompt, or the text of its last user message. InvalidInput names the missing field."""
    if path == CHAT_PATH:
        return _text_of(_messages(body)[_last_of_user(body)]["content"])
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        msg = f"prompt: must be one text, since this model makes its prompt of it, got {str(body.get('prompt'))[:80]!r}"
        raise InvalidInput(msg, field="prompt")
    return prompt


def with_text(path: str, body: Body, text: str) -> Body:
    """Return the body with the client's prompt replaced by this text. Images and other content are kept."""
    if path != CHAT_PATH:
        return {**body, "prompt": text}
    messages, place = list(_messages(body)), _last_of_user(body)
    content = messages[place]["content"]
    given = text if isinstance(content, str) else _with_text_part(content, text)
    messages[place] = {**messages[place], "content": given}
    return {**body, "messages": messages}


def compose_prompt(prompt: PromptTemplate, tensors: Mapping[str, Tensor]) -> str:
    """Fill the template. InvalidInput names an input whose number of elements does not fit."""
    texts = {name: _render_list(name, one, tensors) for name, one in prompt.lists.items()}
    return _fill_template(prompt.template, lambda name: texts[name] if name in texts else _only(name, tensors[name]))


def _fill_template(template: str, value: Callable[[str], str]) -> str:
    """Fill the places of a template; inserted values are not expanded again."""
    return "".join(text + ("" if name is None else value(name)) for text, name in pieces(template))


def _render_list(name: str, one: PromptList, tensors: Mapping[str, Tensor]) -> str:
    counts = {taken: len(_flat(taken, tensors[taken])) for taken in sorted(one.inputs)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{taken}: {count}" for taken, count in counts.items())
        msg = f"inputs: the prompt's list {name!r} takes inputs of equally many elements, got {told}"
        raise InvalidInput(msg, field="inputs")
    places = _order(one.order, tensors[one.order]) if one.order is not None else range(next(iter(counts.values())))
    return "".join(
        _fill_template(one.item, partial(_of_item, tensors, place, number))
        for number, place in enumerate(places[: one.top], 1)
    )


def _of_item(tensors: Mapping[str, Tensor], place: int, number: int, name: str) -> str:
    return str(number) if name == NUMBER else _text(tensors[name], place)


def _order(name: str, tensor: Tensor) -> list[int]:
    """Return the indices by descending number; ties in their original order."""
    if not all_finite(tensor):
        msg = f"{name!r}, by which the prompt orders a list, holds NaN or infinity"
        raise NotFinite(msg)
    numbers = bf16_to_float32(tensor.data) if tensor.datatype == "BF16" else tensor.data
    order: list[int] = np.argsort(-numbers.astype(np.float64), kind="stable").tolist()
    return order


def _only(name: str, tensor: Tensor) -> str:
    if len(_flat(name, tensor)) != 1:
        msg = f"inputs: the prompt has a place for one element of {name!r}, got {tensor.data.size}"
        raise InvalidInput(msg, field="inputs")
    return _text(tensor, 0)


def _flat(name: str, tensor: Tensor) -> Array:
    if tensor.data.ndim != 1:
        msg = f"inputs: the prompt takes {name!r} as a list, got shape {list(tensor.shape)}"
        raise InvalidInput(msg, field="inputs")
    return tensor.data


def _text(tensor: Tensor, place: int) -> str:
    if tensor.datatype == "BYTES":
        element: bytes = tensor.data[place]
        return element.decode(errors="replace")
    number = bf16_to_float32(tensor.data)[place] if tensor.datatype == "BF16" else tensor.data[place]
    if tensor.datatype in FLOATS:
        return format(float(number), _FLOAT_FORM)
    return str(number.item()).lower()


def _with_text_part(content: list[Any], text: str) -> list[Any]:
    """Replace the first text part by this text and drop the other text parts; keep all other content."""
    place = next(number for number, part in enumerate(content) if part.get("type") == "text")
    rest = [part for part in content[place:] if part.get("type") != "text"]
    return [*content[:place], {"type": "text", "text": text}, *rest]


def _messages(body: Body) -> list[Any]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        msg = f"messages: must be a list, got a {type(messages).__name__}"
        raise InvalidInput(msg, field="messages")
    return messages


def _last_of_user(body: Body) -> int:
    messages = _messages(body)
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if isinstance(message, dict) and message.get("role") == "user" and _has_text(message.get("content")):
            return place
    msg = "messages: none is of role user and has text, of which this model makes its prompt"
    raise InvalidInput(msg, field="messages")


def _has_text(content: object) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) for part in content) and any(part.get("type") == "text" for part in content)
    return isinstance(content, str)


def _text_of(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
