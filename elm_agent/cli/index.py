"""``elm-agent index``: how far the indexes have come, and making them anew from the database. Needs no model."""

from __future__ import annotations

from dataclasses import asdict

from elm_agent.cli.opening import whole_bank
from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.progress import count_bar

app = group("index", "The indexes of keys: derived from the database, and never needed to keep anything.")


@app.command("status")
@shared
def status(options: Shared) -> None:
    """Show how far each index was fed, for every namespace, and whether the one in use can be reached."""
    with whole_bank(options.load(), owns_index=True) as bank:
        from elm_agent.storage.indexes.status import capabilities, index_status

        found = [entry for entry in index_status(bank) if options.namespace in (None, entry.namespace)]
        promises = sorted(capability.value for capability in capabilities(bank))
    out = options.output()
    if out.json:
        out.document(
            {"capabilities": promises, "indexes": [{**asdict(entry), "behind": entry.behind} for entry in found]}
        )
        return
    columns = ("index", "namespace", "in use", "input keys", "kv keys", "active", "fed to", "of", "problem")
    out.table(
        columns,
        (
            (
                entry.index,
                entry.namespace,
                "yes" if entry.in_use else "no",
                *(entry.entries.values() if entry.entries is not None else (None, None)),
                entry.active,
                entry.fed,
                entry.newest,
                entry.problem,
            )
            for entry in found
        ),
    )
    out.say(f"the index in use is {', '.join(promises)}; every process also scans exactly where it must")


@app.command("rebuild")
@shared
def rebuild(options: Shared) -> None:
    """Make the index anew from the keys in the database: of one --namespace, or all of it.

    Safe while agents answer: they scan exactly until it is complete. Snapshots of the exact scan go too.
    """
    settings = options.load()
    out = options.output()
    with whole_bank(settings, owns_index=True) as bank, count_bar(out, "keys") as tell:
        fed = bank.rebuild_index(options.namespace, lambda _, done, total: tell(done, total))
        name = bank.durable.name if bank.durable is not None else "exact"
    if out.json:
        out.document({"index": name, "keys": fed})
    else:
        for namespace, keys in fed.items():
            out.say(f"{namespace}: {keys} keys fed to {name}")
        if name == "exact":
            out.say("the exact scan reads its keys from the database at the next question")
