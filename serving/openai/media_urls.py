"""Media in a request to an engine: part of the request, and never an address or a name. Used by serving.openai.routes.

An engine fetches `http://` addresses that it finds in a request, with its machine's access to other services. vLLM
keeps media of all callers by the `uuid` that a client may give: another client's request with the same one gets the
former media.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipnext.errors import InvalidInput
from ipnext.model.echoes import join_steps

KINDS: Final = frozenset({"image_url", "audio_url", "video_url", "file_url"})
"""Members with an address, or with an object that has it as `url`: of OpenAI's chats and responses, and of vLLM's own
forms."""
_SOURCE: Final = "source"
"""The member of Anthropic's messages."""
_NAME: Final = "uuid"
"""The member of a content part that names its media in vLLM's caches."""
_MEDIA: Final = frozenset(
    {*KINDS, "image_pil", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "input_audio", "input_image"}
)
"""Members, or types, of vLLM's parts with media, which it also takes outside a list `content`."""
_INLINE: Final = "data:"
_WORDS: Final = (b"url", b"uuid", b"\\u")
"""Without these in its body a request names no media; a name may be spelt with escapes."""
_SHOWN: Final = 80
"""Characters of an address in an error."""


def check_media(body: Mapping[str, Any], content: bytes | bytearray) -> None:
    """Raise InvalidInput if a request names media by another address than a `data:` URL, or by a `uuid`.

    `content` is the unparsed body.
    """
    if not any(word in content for word in _WORDS):
        return
    found = [_Found(body)]
    while found:
        within = found.pop()
        if isinstance(within.value, dict):
            _check_name(within)
            for name, member in within.value.items():
                _check(within, name, _address(name, member, within.value))
        found += within.nested()


@dataclass(frozen=True, slots=True)
class _Found:
    """An object or list of a request.

    Its place is a chain of steps: as a text, each would repeat all names before it.
    """

    value: Any
    step: str | int = ""
    within: "_Found | None" = None

    def nested(self) -> Iterator["_Found"]:
        """Yield the objects and lists of the next level."""
        members = self.value.items() if isinstance(self.value, dict) else enumerate(self.value)
        return (_Found(member, step, self) for step, member in members if isinstance(member, dict | list))

    def place(self, name: str) -> str:
        """Return the place of one of the members, cut."""
        steps: list[str | int] = [name]
        found = self
        while found.within is not None:
            steps.append(found.step)
            found = found.within
        return join_steps(reversed(steps))


def _address(name: str, member: Any, within: Mapping[str, Any]) -> Any:
    """Return the address of media that a member names, if it does."""
    if name in KINDS or (name == _SOURCE and isinstance(member, Mapping) and member.get("type") == "url"):
        return member.get("url") if isinstance(member, Mapping) else member
    return member if name == "url" and within.get("type") in KINDS else None


def _check_name(found: _Found) -> None:
    """Raise InvalidInput if an object is a content part that names its media."""
    if found.value.get(_NAME) is None:
        return
    is_part = isinstance(found.step, int) and found.within is not None and found.within.step == "content"
    kind = found.value.get("type")
    if is_part or (isinstance(kind, str) and kind in _MEDIA) or not _MEDIA.isdisjoint(found.value):
        where = found.place(_NAME)
        msg = f"{where}: must be left out: engines keep media by it for all clients; they recognize equal media by hash"
        raise InvalidInput(msg, field=where, value=found.value[_NAME])


def _check(within: _Found, name: str, address: Any) -> None:
    if isinstance(address, str) and address and address[: len(_INLINE)].lower() != _INLINE:
        where = within.place(name)
        msg = f"{where}: engines fetch nothing; give the media in the request, as a data: URL, not {address[:_SHOWN]!r}"
        raise InvalidInput(msg, field=where, value=address[:_SHOWN], allowed=("data:MEDIA_TYPE;base64,...",))
