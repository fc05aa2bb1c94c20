"""Commands that sign: a pair of keys, and a snapshot's signature. They speak to no server."""

from pathlib import Path
from typing import Annotated

import typer

from ipnext.artifacts.local_links import open_directory
from ipnext.artifacts.sources import signature_of
from ipnext.cli.command import Command
from ipnext.cli.output import say
from ipnext.client.upload import verify_snapshot
from ipnext.errors import SignatureInvalid
from ipnext.model.registry.registry import SIGNATURE_FILE

PrivateKey = Annotated[Path, typer.Option("--key", metavar="KEY.pem", help="Private key, PEM, without a password.")]


def keygen(
    key: Annotated[
        Path, typer.Argument(metavar="KEY.pem", help="Where to write the private key; KEY.pub.pem beside it.")
    ],
) -> None:
    """Make a pair of Ed25519 keys: KEY.pem to sign with, KEY.pub.pem for spec.validation.signers.publicKeys."""
    from ipnext.artifacts.signing import write_key_pair  # noqa: PLC0415 - a slow import

    public = key.with_suffix(".pub.pem")
    identity = write_key_pair(key, public)
    say(f"key {identity:.12}: sign with {key}, keep it secret; {public} is for spec.validation.signers.publicKeys")


def sign(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A snapshot, as export_model writes it.")],
    key: PrivateKey,
) -> None:
    """Sign a snapshot directory: read and check every file, then write snapshot.json.sig next to snapshot.json."""
    from ipnext.artifacts.atomic_files import write_whole  # noqa: PLC0415 - with the next one
    from ipnext.artifacts.signing import sign_digest  # noqa: PLC0415 - a slow import

    source = open_directory(directory)
    manifest = verify_snapshot(source)
    envelope = sign_digest(manifest.digest, key)
    try:
        former = signature_of(source, manifest)
    except SignatureInvalid:  # of what the directory held before
        former = None
    written = envelope if former is None else former.merge(envelope)
    write_whole(directory / SIGNATURE_FILE, [written.content], scratch=directory)
    say(f"{directory / SIGNATURE_FILE}: snapshot {manifest.digest:.16} is signed by {envelope.signatures[0].keyid:.12}")


COMMANDS = (
    Command("keygen", "Make a pair of keys to sign snapshots with.", keygen),
    Command("sign", "Sign a snapshot directory.", sign),
)
