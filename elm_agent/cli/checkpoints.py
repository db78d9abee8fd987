"""The parts of ``elm-agent audit`` that are about checkpoints: one is taken, a bank is held against one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.opening import whole_bank
from elm_agent.cli.options import Shared
from elm_agent.cli.progress import count_bar
from elm_agent.errors import InputError, StorageError

if TYPE_CHECKING:
    from elm_agent.storage.ledger.checkpoints import Compared


def checkpoint(
    options: Shared,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The checkpoint; keep it out of the bank's reach.")
    ],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Private key that signs it (`elm-agent keys new`).")
    ] = None,
) -> None:
    """Verify every chain of the bank, and write down where each one stands, signed if a key is given."""
    answer = options.output()
    if out.exists():
        raise InputError(f"{out} exists already: a checkpoint is not overwritten; name another file")
    from elm_agent.storage.ledger import checkpoints
    from elm_agent.storage.ledger.signing import SigningKey

    signer = None if key is None else SigningKey.read(key)
    with whole_bank(options.load(), owns_index=False) as bank, count_bar(answer, "events") as progress:
        taken = checkpoints.take(bank.database, key=signer, vault=bank.vault, progress=progress)
    checkpoints.write(taken, out)
    if answer.json:
        answer.document(taken)
        return
    events = sum(point.revision for point in taken.chains)
    signed = "not signed: whoever can change it can forge it" if signer is None else f"signed by {signer.public}"
    answer.say(f"wrote {out}: {len(taken.chains)} chains with {events} events, {signed}")


def verify_against(options: Shared, file: Path, public_key: str | None) -> int:
    """Check the signature of a checkpoint, and hold the bank against it. The exit status."""
    from elm_agent.storage.ledger import checkpoints
    from elm_agent.storage.ledger.signing import PublicKey

    out = options.output()
    taken = checkpoints.read(file)
    if public_key is not None:
        checkpoints.check_signature(taken, PublicKey.read(public_key))
    with whole_bank(options.load(), owns_index=False) as bank, count_bar(out, "events") as progress:
        compared = checkpoints.compare(bank.database, taken, vault=bank.vault, progress=progress)
    broken = [entry for entry in compared if entry.problem is not None]
    if out.json:
        out.document({"chains": compared, "whole": not broken, "signature": _signature(public_key)})
        return StorageError.exit_code if broken else 0
    out.table(("namespace", "events then", "events since", "chain"), map(_row, compared))
    out.say(f"taken {taken.created_at}; {_signature(public_key)}")
    if broken:
        raise StorageError(
            f"the chain of namespace {broken[0].namespace!r} does not go on from {file}: {broken[0].problem}; "
            f"{len(broken)} of {len(compared)} chains are broken. Restore the database from a backup and compare"
        )
    return 0


def _row(entry: Compared) -> tuple[str, int, int, str]:
    verdict = "goes on from the checkpoint" if entry.problem is None else f"BROKEN: {entry.problem}"
    return (entry.namespace, entry.revision, entry.events_since, verdict)


def _signature(public_key: str | None) -> str:
    return "its signature was not checked: give --public-key" if public_key is None else "its signature is good"
