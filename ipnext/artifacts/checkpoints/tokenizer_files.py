"""Tokenizer files and chat templates of a checkpoint: their largest sizes, and the templates that files hold.

Names and forms are those that transformers reads. Pure: `ipnext.artifacts.checkpoints.reader` reads the files. The
validator `checkpoint` compiles and renders the templates (`activities.validation.chat_templates.process`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final

LARGEST_TEMPLATE_BYTES: Final = 256 << 10
"""Of one chat template; those of known models have up to 50 KB. One of this size takes 4 s to compile."""
MOST_TEMPLATES: Final = 32
"""Chat templates of a checkpoint; known models have up to three."""

_JSON_OF_TEMPLATES: Final = 4 << 20
_WORDS: Final = 64 << 20
LARGEST_BYTES: Final[Mapping[str, int]] = {
    "*.jinja": LARGEST_TEMPLATE_BYTES,
    "chat_template.json": _JSON_OF_TEMPLATES,
    "processor_config.json": _JSON_OF_TEMPLATES,
    "special_tokens_map.json": _JSON_OF_TEMPLATES,
    "tokenizer_config.json": 16 << 20,
    "added_tokens.json": 16 << 20,
    "tokenizer*.json": _WORDS,
    "tekken.json": _WORDS,
    "vocab.*": _WORDS,
    "merges.txt": _WORDS,
    "*.model": _WORDS,
    "*.tiktoken": _WORDS,
}
"""Pattern of a file's name, in any folder -> its largest size in bytes. The first pattern that fits counts.

Gemma 3 has a `tokenizer.json` of 33 MB and a `tokenizer_config.json` of 1.2 MB.
"""

TEMPLATE_FILE: Final = "chat_template.jinja"
TEMPLATE_FOLDER: Final = "additional_chat_templates"
"""Folder of further templates, as `NAME.jinja`."""
TEMPLATE_FIELD: Final = "chat_template"
TEMPLATE_DOCUMENTS: Final = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Documents whose TEMPLATE_FIELD has templates."""
TOKEN_DOCUMENTS: Final = ("special_tokens_map.json", "tokenizer_config.json")
"""Documents with special tokens, which transformers gives to a template under their names."""


class MalformedTemplates(ValueError):
    """Chat templates in another form than transformers reads, too large, or too many."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template."""

    place: str
    """Its file; if that has several, with its name."""
    text: str


def size_fault(path: str, size_bytes: int) -> str | None:
    """Return the fault of a file that is larger than allowed; None if it is not."""
    name = PurePosixPath(path).name
    most = next((most for pattern, most in LARGEST_BYTES.items() if fnmatchcase(name, pattern)), None)
    if most is None or size_bytes <= most:
        return None
    return f"{path}: {size_bytes} bytes are too many; allowed: {most}"


def is_template_file(path: str) -> bool:
    """Return whether transformers reads a file as a chat template."""
    folder, _, name = path.rpartition("/")
    return path == TEMPLATE_FILE or (folder == TEMPLATE_FOLDER and name.endswith(".jinja"))


def parse_template_file(path: str, content: bytes) -> ChatTemplate:
    """Return the template of a file of its own. Raises MalformedTemplates."""
    if fault := size_fault(path, len(content)):
        raise MalformedTemplates(fault)
    try:
        return ChatTemplate(path, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        msg = f"{path}: is not UTF-8: {error.reason} at byte {error.start}"
        raise MalformedTemplates(msg) from error


def templates_in(document: str, value: Any) -> Iterator[ChatTemplate]:
    """Yield the templates of the field `chat_template` of a document.

    It is a text, a list of {name, template}, or an object of names to templates. Raises MalformedTemplates.
    """
    place = f"{document}: {TEMPLATE_FIELD}"
    for name, text in _named(place, value):
        if not isinstance(text, str):
            msg = f"{place}{name}: must be a text, got a {type(text).__name__}"
            raise MalformedTemplates(msg)
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > LARGEST_TEMPLATE_BYTES:
            msg = f"{place}{name}: {size} bytes are too many; allowed: {LARGEST_TEMPLATE_BYTES}"
            raise MalformedTemplates(msg)
        yield ChatTemplate(f"{place}{name}", text)


def _named(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case None:
            return
        case str():
            yield "", value
        case dict():
            yield from ((_quote_start(name), text) for name, text in value.items())
        case list():
            for number, entry in enumerate(value):
                if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "template" not in entry:
                    msg = f"{place}: entry {number} must be an object with the texts `name` and `template`"
                    raise MalformedTemplates(msg)
                yield _quote_start(entry["name"]), entry["template"]
        case _:
            msg = f"{place}: must be a text, a list of {{name, template}} or an object, got a {type(value).__name__}"
            raise MalformedTemplates(msg)


def _quote_start(name: str) -> str:
    return f" {name[:100]!r}"


def take_templates(templates: Iterable[ChatTemplate]) -> tuple[ChatTemplate, ...]:
    """Return all templates of a checkpoint. MalformedTemplates if they are too many; no more than that are read."""
    found = tuple(islice(templates, MOST_TEMPLATES + 1))
    if len(found) > MOST_TEMPLATES:
        msg = f"{found[-1].place}: with it the checkpoint has more chat templates than allowed: {MOST_TEMPLATES}"
        raise MalformedTemplates(msg)
    return found


def special_tokens_in(document: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the special tokens of a document by their names, such as `bos_token`."""
    found = {name: value.get("content") if isinstance(value, dict) else value for name, value in document.items()}
    return {name: text for name, text in found.items() if name.endswith("_token") and isinstance(text, str)}
