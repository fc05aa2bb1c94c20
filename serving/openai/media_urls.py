"""Media in a request to an engine: part of the request, and never an address. Used by serving.openai.routes.

An engine fetches `http://` addresses that it finds in a request, with its machine's access to other services.
"""

from collections.abc import Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput

KINDS: Final = frozenset({"image_url", "audio_url", "video_url", "file_url"})
"""Members with an address, or with an object that has it as `url`: of OpenAI's chats and responses, and of vLLM's own forms."""
_SOURCE: Final = "source"
"""The member of Anthropic's messages."""
_INLINE: Final = "data:"
_SHOWN: Final = 80
"""Characters of an address in an error."""


def check_media(body: Mapping[str, Any], content: bytes | bytearray) -> None:
    """Raise InvalidInput if a request names media by another address than a `data:` URL. `content` is the unparsed body."""
    if b"url" not in content and b"\\u" not in content:  # none is named, and no name is spelt with escapes
        return
    found: list[tuple[str, Any]] = [("", body)]
    while found:
        place, value = found.pop()
        if isinstance(value, Mapping):
            for name, member in value.items():
                where = f"{place}.{name}" if place else name
                _check(where, _address(name, member, value))
                if isinstance(member, Mapping | list):
                    found.append((where, member))
        else:
            found += [(f"{place}.{n}", item) for n, item in enumerate(value) if isinstance(item, Mapping | list)]


def _address(name: str, member: Any, within: Mapping[str, Any]) -> Any:
    """Return the address of media that a member names, if it does."""
    if name in KINDS or (name == _SOURCE and isinstance(member, Mapping) and member.get("type") == "url"):
        return member.get("url") if isinstance(member, Mapping) else member
    return member if name == "url" and within.get("type") in KINDS else None


def _check(where: str, address: Any) -> None:
    if isinstance(address, str) and address and address[: len(_INLINE)].lower() != _INLINE:
        msg = f"{where}: engines fetch nothing; give the media in the request, as a data: URL, not {address[:_SHOWN]!r}"
        raise InvalidInput(msg, field=where, value=address[:_SHOWN], allowed=("data:MEDIA_TYPE;base64,...",))
