"""Homes with every kind of file that a bank has, and what an agent makes of one: what it serves and what it refuses.

Each home is a folder of its own below the root. Knows nothing of damage; that is ``flipped_files``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import s3
import s3fs
from dying_worker import make_worker
from forks import forks
from kill_child import MODEL, NAMESPACE, RECIPE
from sqlalchemy import event
from warm_chroma import warm_chroma

from elm_agent.errors import ElmError
from elm_agent.protocols import TensorStore
from elm_agent.records import KeyKind, MemoryState, digest_of
from elm_agent.settings import load_settings
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.ledger import checkpoints
from elm_agent.storage.ledger.signing import PublicKey, SigningKey
from elm_agent.storage.packs.transfer import export_pack, import_pack
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors
from elm_agent.storage.vault.opening import open_vault
from elm_agent.testing.doubles import key_of

# kind of file: (where it lies below the root, the home that is opened)
KINDS: dict[str, tuple[str, str]] = {
    "database": ("plain/bank.sqlite", "plain"),
    "journal": ("plain/bank.sqlite-journal", "plain"),
    "hot journal": ("hot/bank.sqlite-journal", "hot"),
    "tensor": ("plain/tensors/**/*.safetensors", "plain"),
    "tensor by URL": ("cached/tensors/**/*.safetensors", "cached"),
    "cached tensor": ("cached/cache/**/*.safetensors", "cached"),
    "snapshot of keys": ("plain/index/*/*/*/*", "plain"),
    "sealed database": ("sealed/bank.sqlite", "sealed"),
    "sealed tensor": ("sealed/tensors/**/*.safetensors", "sealed"),
    "master key": ("sealed/master.key", "sealed"),
    "signing key": ("checkpoint/signing.key", "checkpoint"),
    "public key": ("checkpoint/signing.pub", "checkpoint"),
    "checkpoint": ("checkpoint/checkpoint.json", "checkpoint"),
    "pack": ("packs/plain.elm", "packs"),
    "signed pack": ("packs/signed.elm", "packs"),
    "settings": ("settings/settings.toml", "settings"),
    "profile": ("settings/server.toml", "settings"),
    "chroma": ("chroma/chroma/**/*", "chroma"),
}
S3_KIND = "object in S3"  # only where there is a server; what lies there is named by s3/place.json
MEMORIES = 12
_SIGNED = b"what is signed"


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


# --- made ---------------------------------------------------------------------------------------------------------


def make_homes(root: Path, objects: Objects | None) -> None:
    """Banks with some history, and what leaves them: checkpoints, packs, keys. Settings and a profile."""
    for how in ("plain", "cached", "sealed", "chroma", *(["s3"] if objects else [])):
        (root / how).mkdir(parents=True)
        if how == "sealed":
            key_file = root / how / "master.key"
            key_file.write_bytes(base64.b64encode(hashlib.sha256(b"key").digest()) + b"\n")
            key_file.chmod(0o600)
        if how == "s3":
            assert objects is not None
            objects.name(root, objects.reference)
        _fill(root, how)
    (root / "packs").mkdir()
    (root / "checkpoint").mkdir()
    key = SigningKey.generate()
    signing_key = root / "checkpoint" / "signing.key"
    key.write(signing_key)
    (root / "checkpoint" / "signing.pub").write_text(f"{key.public}\n")
    with closing(open_home(root, "plain")) as bank:
        export_pack(bank, NAMESPACE, root / "packs" / "plain.elm", actor="test")
        export_pack(bank, NAMESPACE, root / "packs" / "signed.elm", key=signing_key, actor="test")
    shutil.copytree(root / "plain", root / "hot")
    shutil.copytree(root / "plain", root / "checkpoint", dirs_exist_ok=True)
    shutil.copy(root / "checkpoint" / "signing.pub", root / "packs")
    with closing(open_home(root, "checkpoint")) as bank:
        checkpoints.write(checkpoints.take(bank.database, key=key), root / "checkpoint" / "checkpoint.json")
    _die_in_an_eviction(root)
    (root / "settings").mkdir()
    (root / "settings" / "settings.toml").write_text(
        'namespace = "team"\nexact_limit = 100\n\n[learning]\nsteps = 3\n'
    )
    shutil.copy(Path(__file__).parents[2] / "storage" / "profiles" / "server.toml", root / "settings")


def _fill(root: Path, how: str) -> None:
    with closing(open_home(root, how)) as bank:
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


def _die_in_an_eviction(root: Path) -> None:
    """Leave a journal from which the next to open the database must roll back what was half written."""
    process = forks().Process(target=_evict_and_die, args=(root,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (root / "hot" / "bank.sqlite-journal").read_bytes()[:8] == bytes.fromhex("d9d505f920a163d7"), "not hot"


def _evict_and_die(root: Path) -> None:
    def die(step: str, _detail: dict[str, Any]) -> None:
        if step == "evict.before_commit":
            os.kill(os.getpid(), signal.SIGKILL)

    bank = open_home(root, "hot")
    ids = [memory.id for memory in bank.memories(NAMESPACE)]
    bank.database.close()
    # a cache of one page: what is changed is written into the file before the commit
    event.listen(bank.database.engine, "connect", lambda connection, _record: _small_cache(connection))
    bank.evict(NAMESPACE, dict.fromkeys(ids, "enough"), actor="test", observe=die)


def _small_cache(connection: Any) -> None:
    connection.execute("PRAGMA cache_size = 1")


# --- opened -------------------------------------------------------------------------------------------------------


def open_home(root: Path, how: str) -> Bank:
    home = root / how
    database = Database.open(f"sqlite:///{home / 'bank.sqlite'}")
    chroma = warm_chroma(home / "chroma") if how == "chroma" else None
    return Bank(
        database,
        _tensors(home, how),
        index="durable" if chroma else "exact",
        durable=chroma,
        exact=ExactIndex(home / "index", keep_above=3),
        vault=open_vault(database, key_file=home / "master.key") if how == "sealed" else None,
    )


def _tensors(home: Path, how: str) -> TensorStore:
    if how == "cached":
        cache = TensorCache(home / "cache", max_bytes=10**8, max_age_seconds=10**6)
        return FsspecTensors(f"file://{home / 'tensors'}", cache=cache)
    if how == "s3":
        place = json.loads((home / "place.json").read_bytes())
        return FsspecTensors(place["url"], options={"endpoint_url": place["endpoint"]})
    return LocalTensors(home / "tensors")


# --- visited ------------------------------------------------------------------------------------------------------


def gather(root: Path, how: str) -> Seen:
    """What an agent gets out of one home."""
    seen = Seen()
    home = root / how
    match how:
        case "settings":
            for name in ("settings", "server"):
                seen.attempt(name, lambda: load_settings(home / f"{name}.toml").model_dump(mode="json"))  # noqa: B023
        case "packs":
            seen.attempt("import", lambda: _import(root, "plain.elm", None))
            seen.attempt("signed import", lambda: _import(root, "signed.elm", home / "signing.pub"))
        case "checkpoint":
            seen.attempt("sign", lambda: _sign_and_check(home))
            seen.attempt("checkpoint", lambda: _compare(root))
        case _:
            return _use(root, how)
    return seen


def _use(root: Path, how: str) -> Seen:
    """Read everything, ask the doctor, learn one more."""
    seen = Seen()
    try:
        with closing(open_home(root, how)) as bank:
            seen = _read(bank)
            report = examine(bank)
            seen.found = [f"{finding.kind}: {finding.problem}" for finding in report.findings] + list(report.skipped)
            seen.attempt("learn", lambda: _learn(bank))
    except ElmError as error:
        seen.refused.append(str(error))
    return seen


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
    return [
        memory.id,
        memory.question,
        memory.state,
        str(memory.pinned),
        str(memory.valid_until),
        repr(memory.model),
        repr(memory.recipe),
    ]


def _learn(bank: Bank) -> str:
    bank.jobs.enqueue(NAMESPACE, "What is new?", task="math", model_id=MODEL.id, recipe=RECIPE)
    return str(make_worker(bank).run_one())


def _import(root: Path, pack: str, public_key: Path | None) -> list[str]:
    place = root / "imported" / pack
    place.mkdir(parents=True, exist_ok=True)
    bank = Bank(Database.open(f"sqlite:///{place / 'bank.sqlite'}"), LocalTensors(place), index="exact")
    with closing(bank):
        given = root / "packs" / pack
        import_pack(bank, NAMESPACE, given, public_key=public_key, new_namespace=True, actor="test")
        return sorted(memory.question + _prompt(bank, memory.id) for memory in bank.memories(NAMESPACE))


def _sign_and_check(home: Path) -> str:
    """What this key signs, everybody who has its public half can check."""
    signature = SigningKey.read(home / "signing.key").sign(_SIGNED)
    PublicKey.read(home / "signing.pub").verify(_SIGNED, signature)
    return signature


def _compare(root: Path) -> list[str]:
    home = root / "checkpoint"
    held = checkpoints.read(home / "checkpoint.json")
    checkpoints.check_signature(held, PublicKey.read(home / "signing.pub"))
    with closing(open_home(root, "checkpoint")) as bank:
        return [repr(one) for one in checkpoints.compare(bank.database, held)]


# --- objects ------------------------------------------------------------------------------------------------------


class Objects:
    """The tensors of the home "s3": each visit has a copy of its own under a new name."""

    def __init__(self, server: s3.S3Server) -> None:
        self._server = server
        self.reference = server.new_url()
        self._fs = s3fs.S3FileSystem(
            key=s3.KEY,
            secret=s3.SECRET,
            endpoint_url=server.endpoint,
            skip_instance_cache=True,
            use_listings_cache=False,
        )

    def name(self, root: Path, url: str) -> None:
        place = {"url": url, "endpoint": self._server.endpoint}
        (root / "s3" / "place.json").write_text(json.dumps(place))

    def fresh(self, root: Path) -> list[str]:
        """Copy every object; their paths."""
        url = self._server.new_url()
        old, new = (given.removeprefix("s3://") for given in (self.reference, url))
        copies = []
        for path in self._fs.find(old):
            copies.append(path.replace(old, new, 1))
            self._fs.pipe_file(copies[-1], self._fs.cat_file(path))
        self.name(root, url)
        return copies

    def change(self, path: str, change: Callable[[bytes], bytes]) -> None:
        self._fs.pipe_file(path, change(self._fs.cat_file(path)))
