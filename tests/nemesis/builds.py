"""Builds of the platform's processes: which of them run as the build after this one.

`tests.workflows.builds.next_build` makes it.

A child of `ipnext dev` whose name is a file below `state/next` starts as the next build, else as this one. The first
process of the next build that starts migrates the schema under those of this build.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ipnext.dev import children
from ipnext.store.schema import migration
from tests.nemesis.faults.limits import with_limit
from tests.workflows.builds.next_build import make_next_build

Build = Literal["this", "next"]
ROOT = Path(__file__).parents[2]
_DIRECTORY, _ENVIRONMENT = "next", "next-build"


def build_of(state: Path, name: str) -> Build:
    """As which build a child starts."""
    return "next" if _mark(state, name).exists() else "this"


def set_build(state: Path, name: str, build: Build) -> None:
    """Let a child start as a build, the next time it does."""
    mark = _mark(state, name)
    mark.parent.mkdir(exist_ok=True)
    mark.touch() if build == "next" else mark.unlink(missing_ok=True)


def command_of(state: Path, name: str, command: Sequence[str]) -> Sequence[str]:
    """The command of a child: as it is, or with the same program run by the interpreter of the next build."""
    if build_of(state, name) == "this" or list(command[:2]) != [sys.executable, "-m"]:
        return command
    return [str(_interpreter(state)), *command[1:]]


def _interpreter(state: Path) -> Path:
    """That of the next build's environment, which is made when it is asked for first."""
    directory = state / _ENVIRONMENT
    if not directory.exists():
        return make_next_build(directory, ROOT, migration.newest_revision())
    return directory / "bin" / "python"


def start_children_as_marked(state: Path) -> None:
    """From now on children of this process start as the build that is set for them, and the server with its limit."""
    start = children.Child.start

    def start_marked(child: children.Child) -> None:
        own = child.command
        child.command = with_limit(state, child.name, command_of(state, child.name, own))
        try:
            start(child)
        finally:
            child.command = own

    children.Child.start = start_marked  # type: ignore[method-assign]


def _mark(state: Path, name: str) -> Path:
    return state / _DIRECTORY / name
