"""Allowed callers of each inner route: one table for agents, routers and hosts. Routes outside it are refused."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ipnext.components.identity import Component
from ipnext.errors import Forbidden

_PLANE: Final = frozenset({Component.CONTROL_PLANE})
_AGENT: Final = frozenset({Component.AGENT})
_GATEWAY: Final = frozenset({Component.GATEWAY})
_ROUTER: Final = frozenset({Component.ROUTER})
ANY: Final = frozenset(Component)
VLLM_PATHS: Final = ("score", "rerank", "classify", "pooling", "tokenize", "detokenize")
"""Paths that vLLM adds to OpenAI's."""


@dataclass(frozen=True)
class Rule:
    """Callers of all paths that begin with these steps, at the listener of one component."""

    listener: Component
    steps: tuple[str, ...]
    callers: frozenset[Component]


RULES: Final = (
    Rule(Component.AGENT, ("healthz",), ANY),
    Rule(Component.AGENT, ("access",), _PLANE),
    Rule(Component.AGENT, ("state",), _PLANE),
    Rule(Component.AGENT, ("applied",), _PLANE),
    Rule(Component.AGENT, ("changes",), _PLANE),
    Rule(Component.AGENT, ("logs",), _PLANE),
    Rule(Component.AGENT, ("prefetches",), _PLANE),
    Rule(Component.AGENT, ("deployments",), _PLANE),
    Rule(Component.AGENT, ("routes",), _PLANE),
    Rule(Component.AGENT, ("timings",), _PLANE),
    Rule(Component.ROUTER, ("control",), _AGENT),
    Rule(Component.ROUTER, ("metrics",), _AGENT),
    Rule(Component.ROUTER, ("healthz",), ANY),
    Rule(Component.ROUTER, ("v1",), _GATEWAY),
    Rule(Component.ROUTER, ("v2",), _GATEWAY),
    *(Rule(Component.ROUTER, (path,), _GATEWAY) for path in VLLM_PATHS),
    Rule(Component.HOST, ("control",), _AGENT),
    Rule(Component.HOST, ("metrics",), _AGENT),
    Rule(Component.HOST, ("healthz",), ANY),
    Rule(Component.HOST, ("frames",), _ROUTER),
    Rule(Component.HOST, ("parts",), _ROUTER | _AGENT),
)
"""A host that executes a part graph calls other hosts in the place of its router, on the same sockets. An agent calls
parts to time them, before users are sent to a new generation."""

_TABLE: Final = {(rule.listener, rule.steps[0]): rule.callers for rule in RULES}


def callers_of(listener: Component, path: str) -> Collection[Component]:
    """Return the components that may call a path; none if the table does not contain it."""
    return _TABLE.get((listener, path.partition("?")[0].strip("/").partition("/")[0]), frozenset())


def authorise(listener: Component, caller: Component, path: str) -> None:
    """Raise Forbidden unless this caller may call the path."""
    allowed = callers_of(listener, path)
    if caller not in allowed:
        names = ", ".join(sorted(allowed)) or "no component"
        msg = f"{caller} may not call {path[:100]!r} of a {listener}; allowed: {names}"
        raise Forbidden(msg, policy="components")
