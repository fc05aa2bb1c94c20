"""The group of commands: errors become one line and an exit status, and plug-ins join by entry point.

A plug-in is imported only when it is called, so that `ipnext --help` is quick and survives one that can't be.
"""

import ast
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from ipnext.cli.terminal import escape_controls
from ipnext.errors import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_OK, IPnextError
from ipnext.names import COMMAND_GROUP

INSTALL = "pip install 'ipnext[platform]'"
_USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for a bad command line, whichever parser it stands on."""

_COMPLETION = frozenset({"install_completion", "show_completion"})
"""Options that typer gives to a program of its own, and that make no sense on a command of ours."""

_ALTERNATIVES = {"--wait": "; `ipnext wait MODEL` waits for a model"}
"""Option -> what to use if a command lacks it."""

_ABOUT = re.compile(r"^`ipnext [a-z-]+`: (.+?)\.(?:\s|$)")

_REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*).*extra\s*==\s*['\"]platform['\"]")


class PluginGroup(TyperGroup):
    """Commands of our own and of the entry-point group `ipnext.commands`; our own win."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. An error of the tree is `error: ...` on stderr and its exit status."""
        try:
            return super().invoke(ctx)
        except IPnextError as error:
            typer.echo(f"error: {escape_controls(error.message)}", err=True)
            raise typer.Exit(error.exit_status) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as a process: a usage error is one line and exit status 2."""

        def run() -> Any:
            return super(PluginGroup, self).main(args, prog_name, complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        try:
            status = run()
        except _USAGE_ERROR as error:
            path = error.ctx.command_path if error.ctx is not None else "ipnext"
            text = " ".join(error.format_message().removesuffix(".").split()).replace(": Value error, ", ": ")
            other = _ALTERNATIVES.get(getattr(error, "option_name", ""), "")
            typer.echo(f"error: {escape_controls(text)}{other}; see `{path} -h`", err=True)
            status = EXIT_BAD_INPUT
        except typer.Abort:
            status = EXIT_FAILURE
        sys.exit(status if isinstance(status, int) else EXIT_OK)

    def list_commands(self, ctx: Any) -> list[str]:
        """Our own commands in their order, then plug-ins by name."""
        own = super().list_commands(ctx)
        return [*own, *sorted(name for name in _plugins(ctx) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Our own command, or what the help shows of a plug-in."""
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        plugin = _plugins(ctx).get(cmd_name)
        return None if plugin is None else _line(plugin, _missing(plugin))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Resolve the command that was called; a plug-in is loaded here."""
        name, command, rest = super().resolve_command(ctx, args)
        if super().get_command(ctx, args[0]) is None:
            plugin = _plugins(ctx).get(args[0])
            if plugin is not None and _missing(plugin) is None:
                command = _load_command(plugin)
        return name, command, rest


def _plugins(ctx: Any) -> dict[str, EntryPoint]:
    """Return the plug-ins by name. One look for a command line: it reads the metadata of every distribution."""
    if COMMAND_GROUP not in ctx.meta:
        found = importlib.metadata.entry_points(group=COMMAND_GROUP)
        ctx.meta[COMMAND_GROUP] = {point.name: point for point in found}
    return cast("dict[str, EntryPoint]", ctx.meta[COMMAND_GROUP])


def _load_command(plugin: EntryPoint) -> Any:
    try:
        found = plugin.load()
    except (ImportError, AttributeError, OSError) as error:
        return _line(plugin, str(error))
    if not isinstance(found, typer.Typer):
        return _line(plugin, f"{plugin.value} is no typer application")
    command = typer.main.get_command(found)
    command.name = plugin.name
    command.params = [p for p in command.params if p.name not in _COMPLETION]
    return command


def _missing(plugin: EntryPoint) -> str | None:
    """Why a plug-in can't be imported, as far as that shows without an import."""
    top = plugin.module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        return f"no module named {top!r}"
    if plugin.dist is None or plugin.dist.name.lower() != "ipnext":
        return None
    wanted = (match[1] for text in plugin.dist.requires or () if (match := _REQUIREMENT.match(text)))
    lacking = [name for name in wanted if not _is_installed(name)]
    return f"not installed: {', '.join(lacking)}" if lacking else None


def _about(plugin: EntryPoint) -> str:
    """Return the first sentence of the module's docstring behind "`ipnext NAME`: ".

    The file is read, not imported. Without such a docstring, return the plug-in's origin.
    """
    top, *rest = plugin.module.split(".")
    spec = importlib.util.find_spec(top)
    places = (Path(place, *rest).with_suffix(".py") for place in (spec and spec.submodule_search_locations) or ())
    file = next((place for place in places if place.is_file()), None)
    said = ast.get_docstring(ast.parse(file.read_bytes())) if file is not None else None
    match = _ABOUT.match(" ".join((said or "").split()))
    return f"{match[1][0].upper()}{match[1][1:]}." if match else f"From {plugin.module}."


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _line(plugin: EntryPoint, reason: str | None) -> TyperCommand:
    """Make a command that stands for a plug-in: its line in the help, and the reason if it can't be called."""

    def unavailable() -> None:
        typer.echo(f"error: the command {plugin.name!r} is unavailable ({reason}); try: {INSTALL}", err=True)
        raise typer.Exit(EXIT_FAILURE)

    text = _about(plugin) if reason is None else f"Unavailable ({reason}); try: {INSTALL}"
    return TyperCommand(
        plugin.name,
        callback=unavailable,
        help=text,
        short_help=text,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
