"""Which engines have seen a session, or the beginning of a prompt. Pure; used by serving.openai.engines.load_balancer.

A beginning is known by a chain of hashes over blocks of its text, as an engine knows its own cache by blocks of tokens: each
hash covers all text before it. Both tables are bounded, and what was used least lately leaves first.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

BLOCK_CHARACTERS: Final = 128
"""About two of vLLM's blocks of 16 tokens."""
MAX_BLOCKS: Final = 256
"""Blocks of one prompt that are looked at: 32 Ki characters."""
KNOWN_BLOCKS: Final = 2**16
KNOWN_SESSIONS: Final = 2**15
ENGINES_OF_BLOCK: Final = 4
"""Engines remembered for one block: a beginning that all prompts share is cached everywhere."""


@dataclass(frozen=True, slots=True)
class RoutingHint:
    """What a request would like to meet again: its session, and the blocks that its prompt begins with."""

    session: str | None
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """Engines that had what a request hopes to find, its home first; `mostly`: at least half of its blocks, or its session."""

    urls: tuple[str, ...]
    mostly: bool
    known: int | None = None
    """The last of its blocks that is known."""


def prompt_of(body: Mapping[str, Any]) -> str:
    """The text of a request as its engine sees it first: tools, messages or prompt; empty where there is none to see."""
    pieces: list[str] = []
    if body.get("tools"):
        pieces.append(str(body["tools"]))
    messages = body.get("messages")
    if isinstance(messages, list):
        told = (message for message in _flat(messages) if isinstance(message, Mapping))
        pieces += (f"{message.get('role')}\0{message.get('content')}\0" for message in told)
    else:
        given = body.get("prompt", body.get("input"))
        if isinstance(given, str | list):
            pieces.append(given if isinstance(given, str) else str(given[: MAX_BLOCKS * BLOCK_CHARACTERS]))
    return "".join(pieces)


def _flat(messages: Sequence[object]) -> Iterator[object]:
    """The messages of one conversation, or of several one behind the other: the first one's beginning is that of all."""
    for message in messages:
        yield from message if isinstance(message, list) else (message,)


def blocks_of(model: str, text: str) -> tuple[int, ...]:
    """The chain of hashes over the whole blocks of a text; those of two models have nothing in common."""
    chain = hash(model)
    found: list[int] = []
    for start in range(0, min(len(text), MAX_BLOCKS * BLOCK_CHARACTERS) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS):
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

    def held(self, url: str) -> int:
        """Blocks that this engine had last: how full of others' beginnings its cache is."""
        return self._held[url]

    def near(self, hint: RoutingHint, urls: Collection[str]) -> PrefixMatch:
        """Those of `urls` that had the session, else those that had the longest beginning; none where nothing is known.

        The first of them is its home: the engine that had it first, of those that are left.
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
        """This engine has them from now on, beside their home where that is one of `homes`, else as their home."""
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
