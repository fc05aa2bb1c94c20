"""Engines that have seen a session or the prefix of a prompt. Pure; used by serving.openai.engines.load_balancer.

A prefix is identified by a chain of hashes over blocks of its text, as an engine's cache is by blocks of tokens: each
hash covers all text before it. Both tables are bounded, and evict the least recently used entry first.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

BLOCK_CHARACTERS: Final = 128
"""Characters of a block: about two of vLLM's blocks of 16 tokens."""
MAX_BLOCKS: Final = 256
"""Blocks of one prompt that are considered: 32 Ki characters."""
_CHARACTERS: Final = MAX_BLOCKS * BLOCK_CHARACTERS
KNOWN_BLOCKS: Final = 2**16
KNOWN_SESSIONS: Final = 2**15
ENGINES_OF_BLOCK: Final = 4
"""Engines remembered for one block: a prefix that all prompts share is cached everywhere."""


@dataclass(frozen=True, slots=True)
class RoutingHint:
    """Affinity of a request: its session, and the blocks of its prompt's prefix."""

    session: str | None
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Engines that match a request, its home first; `mostly`: they had its session, or at least half of its blocks."""

    urls: tuple[str, ...]
    mostly: bool
    known: int | None = None
    """The last known one of its blocks."""


def prompt_of(body: Mapping[str, Any]) -> str:
    """Return the beginning of a request's prompt in the engine's order: tools, messages or prompt.

    Empty if there is none.
    """
    pieces: list[str] = []
    if body.get("tools"):
        pieces.append(str(_cut(body["tools"])))
    messages = body.get("messages")
    if isinstance(messages, list):
        told = (message for message in _flat(messages) if isinstance(message, Mapping))
        length = 0
        for message in told:
            pieces.append(f"{_cut(message.get('role'))}\0{_cut(message.get('content'))}\0")
            length += len(pieces[-1])
            if length > _CHARACTERS:
                break
    else:
        given = body.get("prompt", body.get("input"))
        if isinstance(given, str | list):
            pieces.append(str(_cut(given)))
    return "".join(pieces)


def _cut(value: Any) -> Any:
    """Return a value whose text begins alike, with no more of each text and list than is considered."""
    if isinstance(value, list):
        return [_cut(each) for each in value[:_CHARACTERS]]
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    return value[:_CHARACTERS] if isinstance(value, str) else value


def _flat(messages: Sequence[object]) -> Iterator[object]:
    """Yield the messages of one conversation, or of several in sequence: the first one's prefix stands for all."""
    for message in messages:
        yield from message if isinstance(message, list) else (message,)


def blocks_of(model: str, text: str) -> tuple[int, ...]:
    """Return the hash chain over the complete blocks of a text; chains of different models share nothing."""
    chain = hash(model)
    found: list[int] = []
    for start in range(0, min(len(text), _CHARACTERS) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS):
        chain = hash((chain, text[start : start + BLOCK_CHARACTERS]))
        found.append(chain)
    return tuple(found)


class Affinity:
    """Sessions and blocks with the engines that had them last."""

    def __init__(self, *, blocks: int = KNOWN_BLOCKS, sessions: int = KNOWN_SESSIONS) -> None:
        self._blocks: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._limits = blocks, sessions
        self._held: Counter[str] = Counter()

    def count_blocks(self, url: str) -> int:
        """Return the number of blocks whose home is this engine: how full its cache is with prefixes of others."""
        return self._held[url]

    def near(self, hint: RoutingHint, urls: Collection[str]) -> PrefixMatch:
        """Return those of `urls` that had the session, else those that had the longest prefix.

        None if nothing is known. The first of them is its home: of the engines that are left, the one that had it
        first.
        """
        session = self._sessions.get(hint.session) if hint.session is not None else None
        if session is not None and session in urls:
            return PrefixMatch((session,), mostly=True)
        for place in range(len(hint.blocks) - 1, -1, -1):
            known = tuple(url for url in self._blocks.get(hint.blocks[place], ()) if url in urls)
            if known:
                return PrefixMatch(known, mostly=2 * (place + 1) >= len(hint.blocks), known=hint.blocks[place])
        return PrefixMatch((), mostly=False)

    def note(self, hint: RoutingHint, url: str, *, homes: Collection[str]) -> None:
        """Record that an engine has session and blocks.

        It is an additional engine if their home is one of `homes`, else it becomes their home.
        """
        most_blocks, most_sessions = self._limits
        if hint.session is not None:
            self._sessions[hint.session] = url
            self._sessions.move_to_end(hint.session)
            if len(self._sessions) > most_sessions:
                self._sessions.popitem(last=False)
        for block in reversed(hint.blocks):  # the first block is used last: a chain is forgotten from its end
            known = self._blocks.get(block, ())
            if url not in known[:1]:
                self._blocks[block] = self._with(known, url, beside=any(home in homes for home in known[:1]))
            self._blocks.move_to_end(block)
        while len(self._blocks) > most_blocks:
            _, known = self._blocks.popitem(last=False)
            self._held[known[0]] -= 1

    def _with(self, known: tuple[str, ...], url: str, *, beside: bool) -> tuple[str, ...]:
        first = known[:1] if beside else (url,)
        if known[:1] != first:
            self._held[url] += 1
            self._held.subtract(known[:1])
        return tuple(dict.fromkeys((*first, url, *known)))[:ENGINES_OF_BLOCK]
