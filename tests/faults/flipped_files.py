"""A bank whose files are damaged one at a time, and what an agent makes of each: run in a process of its own.

``gather`` reads everything that a bank serves, and says what it read, what was refused and what the doctor found.
``python tests/faults/flipped_files.py --flips 500`` prints a table by kind of file.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import multiprocessing
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dying_worker import make_worker
from kill_child import MODEL, NAMESPACE, RECIPE

from elm_agent.errors import ElmError
from elm_agent.records import KeyKind, MemoryState, digest_of
from elm_agent.settings import load_settings
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.packs.transfer import export_pack, import_pack
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.remote import FsspecTensors
from elm_agent.storage.vault.opening import open_vault
from elm_agent.testing.doubles import key_of

# kind of file: (where it lies in the home, how the home is opened)
KINDS: dict[str, tuple[str, str]] = {
    "database": ("plain/bank.sqlite", "plain"),
    "journal": ("plain/bank.sqlite-journal", "plain"),
    "tensor": ("plain/tensors/**/*.safetensors", "plain"),
    "snapshot of keys": ("plain/index/*/*/*/*", "plain"),
    "cached tensor": ("plain/cache/**/*.safetensors", "plain"),
    "sealed database": ("sealed/bank.sqlite", "sealed"),
    "sealed tensor": ("sealed/tensors/**/*.safetensors", "sealed"),
    "key file": ("sealed/master.key", "sealed"),
    "pack": ("pack.elm", "pack"),
    "settings": ("settings.toml", "settings"),
    "chroma": ("chroma/chroma/**/*", "chroma"),
}
RARE = {"chroma"}  # its child process takes seconds
MEMORIES = 12


def open_home(home: Path, how: str) -> Bank:
    folder = home / how
    database = Database.open(f"sqlite:///{folder / 'bank.sqlite'}")
    cache = TensorCache(folder / "cache", max_bytes=10**8, max_age_seconds=10**6)
    chroma = ChromaIndex(folder / "chroma") if how == "chroma" else None
    return Bank(
        database,
        FsspecTensors(f"file://{folder / 'tensors'}", cache=cache),
        index="durable" if chroma else "exact",
        durable=chroma,
        exact=ExactIndex(folder / "index", keep_above=3),
        vault=open_vault(database, key_file=folder / "master.key") if how == "sealed" else None,
    )


def make_home(home: Path) -> None:
    """Three banks with some history, a pack and a file of settings."""
    for how in ("plain", "sealed", "chroma"):
        (home / how).mkdir(parents=True)
        if how == "sealed":
            key_file = home / how / "master.key"
            key_file.write_bytes(base64.b64encode(hashlib.sha256(b"key").digest()) + b"\n")
            key_file.chmod(0o600)
        with closing(open_home(home, how)) as bank:
            bank.bind(NAMESPACE, MODEL)
            bank.vault.ensure(NAMESPACE)
            for n in range(MEMORIES):
                question = f"What is {n} times {n}?"
                bank.jobs.enqueue(NAMESPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE)
                make_worker(bank).run_one()
            one, two, *_ = (memory.id for memory in bank.memories(NAMESPACE))
            bank.pin(NAMESPACE, one, True, actor="test")
            bank.transition(NAMESPACE, two, MemoryState.RETIRED, actor="test", reason="enough")
            _read(bank)
            if how == "plain":
                export_pack(bank, NAMESPACE, home / "pack.elm", actor="test")
    (home / "settings.toml").write_text('namespace = "team"\nexact_limit = 100\n\n[learning]\nsteps = 3\n')


@dataclass
class Seen:
    """What an agent met. ``read``: by name, a digest of what was served."""

    read: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    raised: str | None = None

    def attempt(self, name: str, act: Callable[[], Any]) -> None:
        try:
            self.read[name] = digest_of(act())
        except ElmError as error:
            self.refused.append(f"{name}: {error}")


def _read(bank: Bank) -> Seen:
    """Everything that answering and looking serve."""
    seen = Seen()
    for n in range(MEMORIES):
        question = f"What is {n} times {n}?"
        for kind in KeyKind:
            seen.attempt(f"nearest {n} {kind}", lambda: _nearest(bank, question, kind))  # noqa: B023
    seen.attempt("memories", lambda: [_plain(memory) for memory in bank.memories(NAMESPACE)])
    seen.attempt("events", lambda: [(event.kind, event.digest, event.note) for event in bank.events(NAMESPACE)])
    ids: list[str] = []
    seen.attempt("ids", lambda: ids.extend(sorted(memory.id for memory in bank.memories(NAMESPACE))))
    for memory_id in ids:
        seen.attempt(f"prompt {memory_id}", lambda: _prompt(bank, memory_id))  # noqa: B023
        seen.attempt(f"keys {memory_id}", lambda: bank.keys(NAMESPACE, memory_id).input.tobytes().hex())  # noqa: B023
        seen.attempt(f"episode {memory_id}", lambda: repr(bank.episode(NAMESPACE, memory_id)))  # noqa: B023
    return seen


def _nearest(bank: Bank, question: str, kind: KeyKind) -> list[tuple[str, float]]:
    hits = bank.nearest(NAMESPACE, kind, key_of(question, kind), 3)
    return [(hit.memory_id, round(hit.similarity, 5)) for hit in hits]


def _prompt(bank: Bank, memory_id: str) -> str:
    return bank.prompt(NAMESPACE, memory_id).prompt_VE.numpy().tobytes().hex()


def _plain(memory: Any) -> list[str]:
    """What the ledger covers."""
    return [memory.id, memory.question, memory.state, str(memory.pinned), repr(memory.model), repr(memory.recipe)]


def gather(home: Path, how: str) -> Seen:
    """Read everything, ask the doctor, learn one more."""
    seen = Seen()
    if how == "settings":
        seen.attempt("settings", lambda: load_settings(home / "settings.toml").model_dump(mode="json"))
        return seen
    if how == "pack":
        seen.attempt("import", lambda: _import(home))
        return seen
    try:
        with closing(open_home(home, how)) as bank:
            seen = _read(bank)
            report = examine(bank)
            seen.found = [f"{finding.kind}: {finding.problem}" for finding in report.findings] + list(report.skipped)
            seen.attempt("learn", lambda: _learn(bank))
    except ElmError as error:
        seen.refused.append(str(error))
    return seen


def _learn(bank: Bank) -> str:
    bank.jobs.enqueue(NAMESPACE, "What is new?", task="math", model_id=MODEL.id, recipe=RECIPE)
    return str(make_worker(bank).run_one())


def _import(home: Path) -> list[str]:
    place = home / "imported"
    place.mkdir(exist_ok=True)
    bank = Bank(Database.open(f"sqlite:///{place / 'bank.sqlite'}"), FsspecTensors(f"file://{place}"), index="exact")
    with closing(bank):
        import_pack(bank, NAMESPACE, home / "pack.elm", new_namespace=True, actor="test")
        return sorted(memory.question + _prompt(bank, memory.id) for memory in bank.memories(NAMESPACE))


# --- damage -------------------------------------------------------------------------------------------------------


def damage(path: Path, dice: random.Random) -> str:
    """Flip a bit, cut the end off, or overwrite a piece; what was done."""
    data = bytearray(path.read_bytes())
    how = dice.choice(("flip", "flip", "flip", "cut", "zeros"))
    at = dice.randrange(len(data)) if data else 0
    if not data:
        data = bytearray(b"x")
    elif how == "flip":
        data[at] ^= 1 << dice.randrange(8)
    elif how == "cut":
        del data[at:]
    else:
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    path.write_bytes(data)
    return f"{how} at {at}"


def visit(home: Path, how: str) -> tuple[int, Seen | None]:
    """The exit status of an agent's process on this home, and what it saw."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch", "chromadb"])
    heard, said = context.Pipe(duplex=False)
    process = context.Process(target=_visit, args=(home, how, said))
    process.start()
    said.close()
    try:
        seen: Seen | None = heard.recv()
    except EOFError:
        seen = None
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode, seen


def _visit(home: Path, how: str, said: Connection) -> None:
    try:
        said.send(gather(home, how))
    except Exception:  # noqa: BLE001 - whatever is not an ElmError is what is looked for
        said.send(Seen(raised=traceback.format_exc(limit=-4)))


@dataclass
class Flips:
    """What came of damage to one kind of file."""

    flips: int = 0
    found: int = 0
    harmless: int = 0
    unnoticed: int = 0  # something else was served, and nobody said so
    crashed: int = 0  # ended by a signal
    tracebacks: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.unnoticed or self.crashed or self.tracebacks)


def flip_once(reference: Path, scratch: Path, kind: str, truth: Seen, dice: random.Random, flips: Flips) -> None:
    pattern, how = KINDS[kind]
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(reference, scratch)
    files = sorted(path for path in scratch.glob(pattern) if path.is_file())
    file = dice.choice(files)
    done = f"{kind} {file.name}: {damage(file, dice)}"
    status, seen = visit(scratch, how)
    flips.flips += 1
    if status or seen is None:
        flips.crashed += 1
        flips.said.append(f"{done}: ended with {status}")
    elif seen.raised is not None:
        flips.tracebacks += 1
        flips.said.append(f"{done}: {seen.raised}")
    elif seen.found or seen.refused:
        flips.found += 1
    elif seen.read == truth.read or kind == "settings":  # another value of a setting is a setting
        flips.harmless += 1
    else:
        differ = [name for name, value in truth.read.items() if seen.read.get(name) != value]
        flips.unnoticed += 1
        flips.said.append(f"{done}: {differ[:3]} changed, and nobody said so")


def campaign(folder: Path, count: int, dice: random.Random) -> dict[str, Flips]:
    """Damage ``count`` files, each kind about as often."""
    reference, scratch = folder / "reference", folder / "scratch"
    make_home(reference)
    truths = {}
    for how in {how for _, how in KINDS.values()}:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(reference, scratch)
        status, truth = visit(scratch, how)
        assert status == 0, how
        assert truth is not None
        assert (truth.raised, truth.found, truth.refused) == (None, [], [])
        truths[how] = truth
    common = [kind for kind in KINDS if kind not in RARE]
    kinds = [kind for kind in RARE for _ in range(max(1, count // 20))]
    kinds += [common[n % len(common)] for n in range(count - len(kinds))]
    flips: dict[str, Flips] = {kind: Flips() for kind in KINDS}
    for n, kind in enumerate(kinds, 1):
        flip_once(reference, scratch, kind, truths[KINDS[kind][1]], dice, flips[kind])
        if n % 25 == 0:
            print(f"{n} of {len(kinds)}", file=sys.stderr, flush=True)
    return flips


def table(flips: dict[str, Flips]) -> str:
    columns = ("flips", "found", "harmless", "unnoticed", "crashed", "tracebacks")
    lines = [f"{'kind of file':<20}" + "".join(f"{name:>12}" for name in columns)]
    total: Counter[str] = Counter()
    for kind, one in flips.items():
        lines.append(f"{kind:<20}" + "".join(f"{getattr(one, name):>12}" for name in columns))
        total.update({name: getattr(one, name) for name in columns})
    lines.append(f"{'all':<20}" + "".join(f"{total[name]:>12}" for name in columns))
    return "\n".join(lines + [text for one in flips.values() for text in one.said])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        flips = campaign(Path(name), args.flips, random.Random(args.seed))
    print(table(flips))
    return 0 if all(one.clean for one in flips.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
