"""``elm-agent keys``: key pairs that sign checkpoints and packs. Needs no bank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.options import Shared, group, shared

if TYPE_CHECKING:
    from elm_agent.storage.ledger.signing import PublicKey

app = group("keys", "Make and show the key pairs (Ed25519) that sign checkpoints and packs.")


@app.command()
@shared
def new(
    options: Shared,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The private key, in PEM, readable by you only.")
    ],
) -> None:
    """Make a key pair: write the private key to FILE, and print the public one."""
    from elm_agent.storage.ledger.signing import SigningKey

    key = SigningKey.generate()
    key.write(out)
    _show(options, key.public)


@app.command()
@shared
def show(
    options: Shared, file: Annotated[Path, typer.Argument(metavar="FILE", help="A private key, in PEM.")]
) -> None:
    """Print the public key of a private one, to be given to whoever checks what it signs."""
    from elm_agent.storage.ledger.signing import SigningKey

    _show(options, SigningKey.read(file).public)


def _show(options: Shared, public: PublicKey) -> None:
    out = options.output()
    if out.json:
        out.document({"public_key": str(public), "fingerprint": public.fingerprint})
    else:
        out.say(str(public))
