"""What a process does that was started before encryption was switched on."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from bank_helpers import MODEL, RECIPE
from vault_helpers import plain_bank

from elm_agent.errors import VaultLocked
from elm_agent.storage.sql.database import Database


def ask_twice(url: str, folder: Path, line: Connection) -> None:
    """Queue a job, say what came of it, wait to be told to go on, and queue another."""
    bank = plain_bank(Database.open(url), folder)
    for question in ("before", "after"):
        try:
            bank.jobs.enqueue("default", question, task="math", model_id=MODEL.id, recipe=RECIPE)
        except VaultLocked as error:
            line.send(str(error))
        else:
            line.send("queued")
        line.recv()
    bank.close()
