"""Works on a bank in a process of its own, says what was acknowledged to it, and is killed in the middle of it.

Each line of work says what it is about to do where that cannot be asked afterwards, and what the bank has
acknowledged. What was said is in the pipe whatever becomes of the process.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count as count_up
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dying_worker import make_worker
from forks import Forked, forks
from warm_chroma import warm_chroma

from elm_agent.bench.filling import use_of
from elm_agent.errors import BankMoved
from elm_agent.protocols import Observer
from elm_agent.records import (
    KeyKind,
    MemoryState,
    Recipe,
    UseOutcome,
    UseRecord,
)
from elm_agent.storage import upkeep
from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.moving.move import move
from elm_agent.storage.packs.transfer import import_pack
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.vault.opening import open_vault
from elm_agent.storage.vault.rotation import rotate_data
from elm_agent.testing.doubles import fake_fingerprint, key_of

MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=3, rollouts=2, steps=2)
NAMESPACE = "default"
MARK = "kamquat"  # in every text that a purge has to remove
Say = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bank is, and how it is opened."""

    url: str
    home: Path
    index: str = "exact"
    encrypted: bool = False

    @property
    def name(self) -> str:
        return f"{self.url.partition(':')[0].partition('+')[0].removesuffix('ql')}-{self.index}"

    def open(self) -> Bank:
        database = Database.open(self.url)
        chroma = warm_chroma(self.home / "chroma") if self.index == "chroma" else None
        return Bank(
            database,
            LocalTensors(self.home / "tensors"),
            index="durable" if chroma else "exact",
            durable=chroma,
            exact=ExactIndex(self.home / "index", keep_above=4),
            vault=open_vault(database, function=lambda: b"k" * 32) if self.encrypted else None,
        )


@dataclass(frozen=True, slots=True)
class Errand:
    """``work`` on ``memories`` or ``packs``, or a move to ``away``.

    ``step``, ``nth``: where it kills itself; None: somebody else does.
    """

    work: str
    memories: Sequence[str] = ()
    packs: Sequence[Path] = ()
    away: Place | None = None
    step: str | None = None
    nth: int = 1


def start(place: Place, errand: Errand) -> tuple[Forked, Connection]:
    """The process, and where it is heard."""
    context = forks()
    heard, said = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(place, errand, said))
    process.start()
    said.close()
    return process, heard


def _run(place: Place, errand: Errand, said: Connection) -> None:
    left, turn = errand.nth, threading.Lock()

    def tell(step: str, _detail: dict[str, Any]) -> None:
        nonlocal left
        if step == errand.step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def say(what: str, detail: Any) -> None:
        with turn:
            said.send((what, detail))

    bank = place.open()
    if bank.durable is not None and errand.step is None:
        bank.feed()  # Chroma takes long to open: the random moment is to come after that
    say("ready", None)
    WORK[errand.work](bank, errand, say, tell)
    say("finished", None)
    bank.close()


# --- the lines of work; each goes on as long as it has something to do ------------------------------------------


def learn(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    for _ in range(1 if errand.step else 10_000):
        _learn(bank, say, tell)


def use(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    """As an answer does: look a memory up, load its prompt, note the use, and later what it did."""
    for n in range(1 if errand.step else 10_000):
        memory_id = errand.memories[n % len(errand.memories)]
        bank.nearest(NAMESPACE, KeyKind.INPUT, key_of(memory_id, KeyKind.INPUT), 3)
        bank.prompt(NAMESPACE, memory_id)
        use = _use(memory_id)
        bank.record_use(use, observe=tell)
        say("used", (use.id, memory_id))
        bank.settle_use(NAMESPACE, use.id, UseOutcome.FIXED, observe=tell)
        say("settled", use.id)


def count(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    of: dict[str, Any] = {"actor": "upkeep", "vault": bank.vault, "tell": tell}
    for _ in range(1 if errand.step else 10_000):
        for memory_id in errand.memories[:3]:
            _note_use(bank, memory_id, say)
        list(upkeep.count_uses(bank.database, NAMESPACE, **of))
        list(upkeep.prune_outbox(bank.database, NAMESPACE, **of, keep=0))


def evict(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    pair = list(errand.memories[:2])
    for _ in range(1 if errand.step else 10_000):
        say("evicting", pair)
        bank.evict(NAMESPACE, dict.fromkeys(pair, f"it did {MARK}"), actor="policy", observe=tell)
        say("evicted", pair)
        for memory_id in pair:
            say("restoring", [memory_id])
            bank.transition(NAMESPACE, memory_id, MemoryState.ACTIVE, actor="user", reason=None)
            say("restored", [memory_id])


def purge(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    """Two memories at a time, each with a use to take with it."""
    for n in range(0, len(errand.memories), 2):
        pair = list(errand.memories[n : n + 2])
        for memory_id in pair:
            bank.record_use(_use(memory_id))
        say("purging", pair)
        bank.purge(NAMESPACE, pair, actor="user", reason=f"no more {MARK}", observe=tell)
        say("purged", pair)


def take_in(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    for path in errand.packs:
        say("importing", str(path))
        report = import_pack(bank, NAMESPACE, path, actor="user", observe=tell)
        say("imported", [new for _, new in report.ids])


def rotate(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    """The first may only finish what a killed one left, and meet few of the steps."""
    for _ in range(2 if errand.step else 10_000):
        say("rotated", rotate_data(bank, NAMESPACE, observe=tell).version)


def move_away(bank: Bank, errand: Errand, say: Say, tell: Observer) -> None:
    """There and back again, while another thread uses, learns and purges, wherever that is taken."""
    assert errand.away is not None
    banks = [bank, errand.away.open()]
    threading.Thread(target=_meanwhile, args=(list(banks), errand.memories, say), daemon=True).start()
    for n in range(1 if errand.step else 10_000):
        say("moving", n % 2 == 0)
        move(*banks, actor="mover", observe=tell)
        say("moved", n % 2 == 0)
        banks.reverse()


def _meanwhile(banks: list[Bank], memories: Sequence[str], say: Say) -> None:
    left = list(memories)
    for n in count_up():
        try:
            if n % 10 == 0:
                _learn(banks[0], say, lambda _step, _detail: None)
            elif n % 25 == 7 and len(left) > 4:
                gone = [left.pop()]
                say("purging", gone)
                banks[0].purge(NAMESPACE, gone, actor="user", reason=f"no more {MARK}")
                say("purged", gone)
            else:
                _note_use(banks[0], left[n % len(left)], say)
        except BankMoved:
            banks.reverse()
        except BaseException as error:
            say("failed", repr(error))
            raise
        time.sleep(0.01)


WORK: dict[str, Callable[[Bank, Errand, Say, Observer], None]] = {
    "learn": learn,
    "use": use,
    "count": count,
    "evict": evict,
    "purge": purge,
    "import": take_in,
    "rotate": rotate,
    "move": move_away,
}


def _learn(bank: Bank, say: Say, tell: Observer) -> None:
    def observe(step: str, detail: dict[str, Any]) -> None:
        tell(step, detail)
        if step == "job.done":
            say("learned", [detail["memory_id"]])

    question = f"What is {MARK} {secrets.token_hex(8)}?"
    job, _ = bank.jobs.enqueue(NAMESPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE)
    say("queued", job.id)
    make_worker(bank, observe=observe).run_one()


def _note_use(bank: Bank, memory_id: str, say: Say) -> None:
    use = _use(memory_id)
    bank.record_use(use)
    say("used", (use.id, memory_id))


def _use(memory_id: str) -> UseRecord:
    return use_of(NAMESPACE, memory_id, question=f"use of {MARK}")
