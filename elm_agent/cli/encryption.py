"""``elm-agent encryption``: make a master key, see what is sealed, change keys. Needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.opening import whole_bank
from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.output import Output
from elm_agent.cli.progress import count_bar
from elm_agent.errors import InputError, NotFound, StorageError

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.vault.rotation import Resealed, Rewrapped

app = group("encryption", "Keep memories unreadable on disk: keys, what is sealed, and rotation.")


@app.command("new-key")
@shared
def new_key(
    options: Shared,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there, for you alone.")] = None,
) -> None:
    """Print a new master key. Keep a copy where the bank is not: without it, nothing sealed can be read again."""
    from elm_agent.storage.vault.master_keys import MasterKey, new_master_key, write_private

    key = new_master_key()
    answer = options.output()
    if out is None:
        answer.document({"key": key}) if answer.json else answer.say(key)
        return
    write_private(out, f"{key}\n".encode())
    master_id = MasterKey.decoded(key).id
    if answer.json:
        answer.document({"file": out, "master_id": master_id})
    else:
        answer.say(f"wrote master key {master_id} to {out}: set encryption.key_file, or ELM_ENCRYPTION__KEY_FILE")


@app.command()
@shared
def status(options: Shared) -> None:
    """Show each namespace's keys, the master key that wraps them, and how much is not sealed by the newest one."""
    out = options.output()
    with whole_bank(options.load(), owns_index=False) as bank:
        from elm_agent.storage.vault.status import vault_status

        found = vault_status(bank)
    if out.json:
        out.document(found)
        return
    columns = ("namespace", "key", "older", "retired", "master key", "readable rows", "rows under older", "problem")
    out.table(
        columns,
        (
            (
                s.namespace,
                s.version,
                *map(_list, (s.older, s.retired, s.master_ids)),
                s.readable,
                s.outdated,
                s.problem,
            )
            for s in found
        ),
    )
    if any(s.version is not None and (s.readable or s.outdated) for s in found):
        out.say("`elm-agent encryption rotate --data` seals what is readable or under an older key")


@app.command()
@shared
def rotate(
    options: Shared,
    data: Annotated[
        bool, typer.Option("--data", help="A new data key: seal all content of the namespace anew.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="With --data: every namespace of the bank.")] = False,
    new_key_env: Annotated[
        str | None, typer.Option("--new-key-env", metavar="NAME", help="Variable with the new master key.")
    ] = None,
    new_key_file: Annotated[
        Path | None, typer.Option("--new-key-file", metavar="FILE", help="File with the new master key.")
    ] = None,
) -> int:
    """Change keys while agents and workers go on; interrupted, the same command goes on where it stopped.

    Without --data the keys of all namespaces are wrapped by the new master key, or by the first of several keys in
    the configured source; content is not touched.
    """
    settings, out = options.load(), options.output()
    if data and (new_key_env or new_key_file):
        raise InputError("--data makes the new key itself: leave --new-key-env and --new-key-file out")
    if every and not data:
        raise InputError("--all goes with --data: a new master key is for all namespaces anyway")
    with whole_bank(settings, owns_index=False) as bank:
        if not data:
            _show_master(out, _rotate_master(out, bank, new_key_env, new_key_file))
            return 0
        known = [info.name for info in bank.namespaces()]
        if not every and settings.namespace not in known:
            raise NotFound(f"namespace {settings.namespace!r} is not in this bank")
        done = [_rotate_data(out, bank, name) for name in (known if every else [settings.namespace])]
    _show_data(out, done)
    return 0 if all(entry.finished for entry in done) else StorageError.exit_code


def _rotate_master(out: Output, bank: Bank, env: str | None, file: Path | None) -> list[Rewrapped]:
    from elm_agent.storage.vault.master_keys import source
    from elm_agent.storage.vault.rotation import rotate_master

    with count_bar(out, "namespaces") as progress:
        return rotate_master(bank, to=source(key_env=env, key_file=file), progress=progress)


def _rotate_data(out: Output, bank: Bank, namespace: str) -> Resealed:
    from elm_agent.storage.vault.rotation import rotate_data

    with count_bar(out, f"rows of {namespace}") as progress:
        return rotate_data(bank, namespace, progress=progress)


def _show_master(out: Output, done: list[Rewrapped]) -> None:
    if out.json:
        out.document(done)
        return
    changed = [entry for entry in done if entry.before]
    if done:
        out.say(f"{len(changed)} of {len(done)} namespaces were wrapped anew, by master key {done[0].master_id}")
    if changed:
        out.say("from now on processes have to be started with the new master key")


def _show_data(out: Output, done: list[Resealed]) -> None:
    if out.json:
        out.document(done)
        return
    for entry in done:
        out.say(
            f"{entry.namespace}: {entry.rows} rows and {entry.tensors} tensors are sealed by key {entry.version}; "
            + (f"retired: {_list(entry.retired)}" if entry.finished else "not finished: run the same command again")
        )
        for name, problem in entry.left:
            out.say(f"  left as it is: {name}: {problem}")


def _list(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or "-"
