"""The deny-list on the command line: `deny`, `undeny`, and what `get` and `describe` show of it."""

from collections.abc import Iterable
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, age, rows, write
from ipnext.cli.session import client_of
from ipnext.errors import InvalidInput
from ipnext.model.api.denials import DenialView
from ipnext.model.registry.denials import LONGEST_REASON
from ipnext.model.value import Sha256

ALLOWED = "SHA-256 in 64 hexadecimal digits, or sha256:... of an image"
Digest = Annotated[
    str,
    typer.Argument(metavar="DIGEST", help=f"Of a snapshot, a file or an image: {ALLOWED}.", show_default=False),
]


def deny(
    context: typer.Context,
    digest: Digest,
    reason: Annotated[str, typer.Option("--reason", help="Why, in words that publishers read.", show_default=False)],
    output: Output = Form.TABLE,
) -> None:
    """Let no model serve a digest: refuse it everywhere, and go back from generations that have it."""
    if not 0 < len(reason.strip()) <= LONGEST_REASON:
        msg = f"--reason: has {len(reason.strip())} characters; allowed: 1 to {LONGEST_REASON}"
        raise InvalidInput(msg, field="reason", value=reason[:100])
    view = client_of(context).deny(read_digest(digest), reason)
    write(view, output, lambda: denial_tables(view))


def undeny(
    context: typer.Context,
    digest: Digest,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the audit.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """End a denial: the digest may be published again. Generations that were left stay left."""
    view = client_of(context).undeny(read_digest(digest), reason=reason)
    write(view, output, lambda: [f"{view.digest} is not denied any more"])


def read_digest(text: str) -> str:
    """Return a digest without its prefix. Raises InvalidInput."""
    digest = text.removeprefix("sha256:").lower()
    try:
        TypeAdapter(Sha256).validate_python(digest)
    except ValidationError as error:
        msg = f"DIGEST: {text[:100]!r} is no digest; allowed: {ALLOWED}"
        raise InvalidInput(msg, field="digest", value=text[:100]) from error
    return digest


def denials_table(denials: Iterable[DenialView]) -> Table:
    """One line for each denial."""
    lines = ((d.digest, age(d.denied_at), d.denied_by or "", d.reason) for d in denials)
    return rows("", ("digest", "age", "by", "reason"), lines)


def denial_tables(view: DenialView) -> Iterable[Table | str]:
    """All of one denial."""
    by = f" by {view.denied_by}" if view.denied_by else ""
    yield f"{view.digest} is denied{by}: {view.reason}"
    if not view.is_carried_out:
        yield "it is not carried out for all models yet: the reconciler goes on"
    if not view.snapshots:
        yield "no snapshot of a model that you may see is or has it"
        return
    lines = ((each.model, each.part, each.number, each.digest) for each in view.snapshots)
    yield rows("\nsnapshots", ("model", "part", "snapshot", "digest"), lines)
    if view.going_back:
        yield f"going back to a former generation: {', '.join(view.going_back)}"
    if view.staying:
        yield f"serving on, without a former generation to go back to: {', '.join(view.staying)}"


COMMANDS = (
    Command("deny", "Let no model serve a digest.", deny),
    Command("undeny", "End a denial.", undeny),
)
