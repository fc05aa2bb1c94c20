"""A command as the modules of this package list it."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer


class Command(NamedTuple):
    """Name, help and function of a command."""

    name: str
    help: str
    function: Callable[..., Any]


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end; exit status 1 unless it is done.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Longest wait, in seconds.")]
