"""Where every chain of a bank stood at one moment, signed, to be kept elsewhere and held against the bank later.

A chain alone cannot show that its end was cut off, or that all of it was written anew by somebody who owns the
database (see ``chain``); a checkpoint that lies out of that person's reach shows both, for all that was written
before it was taken. The file is JSON; signed are the format, a newline and canonical JSON of all but the signature.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import select

from elm_agent.errors import InputError, NotFound, StorageError
from elm_agent.storage.ledger import chain
from elm_agent.storage.ledger.chain import Progress
from elm_agent.storage.ledger.signing import BadSignature, PublicKey, SigningKey
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, NamespaceRow
from elm_agent.storage.vault.base import Vault

FORMAT = "elm-agent checkpoint 1"
_LARGEST = 64 << 20  # bytes of a file; 10,000 namespaces take 2 MB
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ChainPoint:
    """One namespace's chain had ``revision`` events, the last one with the digest ``head``."""

    namespace: str
    revision: int
    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All chains of a bank at one moment. ``public_key`` and ``signature`` are None when nobody signed it."""

    format: str
    library_version: str
    created_at: str  # ISO 8601, UTC, by the database's clock
    chains: tuple[ChainPoint, ...]
    public_key: str | None
    signature: str | None

    def signed_bytes(self) -> bytes:
        content = asdict(self)
        del content["signature"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"{FORMAT}\n{text}".encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Compared:
    """One chain held against its checkpoint. ``problem``: None when it goes on from there unbroken."""

    namespace: str
    revision: int
    events_since: int
    problem: str | None


def take(
    database: Database, *, key: SigningKey | None = None, vault: Vault | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Verify every chain, then note where it ends. Raises ``StorageError`` for a broken one."""
    with database.read() as session:
        created = database.now(session)
        names = list(session.scalars(select(NamespaceRow.name).order_by(NamespaceRow.name)))
    points = []
    for name in names:
        report = chain.verify(database, name, vault=vault, progress=progress)
        if report.broken is not None:
            raise StorageError(
                f"the chain of namespace {name!r} is broken at event {report.broken.revision}: "
                f"{report.broken.problem}; a checkpoint would bless it. `elm-agent audit verify` says more"
            )
        points.append(ChainPoint(name, report.events, report.head))
    unsigned = Checkpoint(
        format=FORMAT,
        library_version=version("elm-agent"),
        created_at=created.isoformat(),
        chains=tuple(points),
        public_key=None if key is None else str(key.public),
        signature=None,
    )
    return unsigned if key is None else replace(unsigned, signature=key.sign(unsigned.signed_bytes()))


def write(checkpoint: Checkpoint, path: Path) -> None:
    """A new file. Raises ``InputError``; an existing one is never overwritten."""
    text = json.dumps(asdict(checkpoint), ensure_ascii=True, indent=2) + "\n"
    try:
        with open(path, "x", encoding="ascii") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} exists already: a checkpoint is not overwritten; name another file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def read(path: Path) -> Checkpoint:
    """Raises ``InputError`` for what is no checkpoint. Its signature is not looked at."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST:
        raise InputError(f"{path} is no checkpoint: it has more than {_LARGEST} bytes")
    try:
        return _parsed(json.loads(data))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path} is no checkpoint of this version: expected JSON with format {FORMAT!r}") from None


def check_signature(checkpoint: Checkpoint, trusted: PublicKey) -> None:
    """Raise ``BadSignature`` unless ``trusted`` signed it."""
    if checkpoint.signature is None or checkpoint.public_key is None:
        raise BadSignature("the checkpoint is not signed: take one with --key, or check it without --public-key")
    if checkpoint.public_key != str(trusted):
        raise BadSignature(f"the checkpoint was signed by {checkpoint.public_key}, expected {trusted}")
    trusted.verify(checkpoint.signed_bytes(), checkpoint.signature)


def compare(
    database: Database, checkpoint: Checkpoint, *, vault: Vault | None = None, progress: Progress | None = None
) -> list[Compared]:
    """Walk every chain that the checkpoint names, and see whether it passes through the point noted there."""
    return [_compare(database, point, vault, progress) for point in checkpoint.chains]


def _compare(database: Database, point: ChainPoint, vault: Vault | None, progress: Progress | None) -> Compared:
    name, revision = point.namespace, point.revision
    try:
        report = chain.verify(database, name, vault=vault, progress=progress)
    except NotFound:
        return Compared(name, revision, 0, "the namespace is gone, with all its history")
    since = max(report.events - revision, 0)
    if report.broken is not None and report.broken.revision <= revision:
        return Compared(name, revision, since, f"event {report.broken.revision}: {report.broken.problem}")
    if report.events < revision:
        problem = f"the chain has {report.events} events, the checkpoint {revision}: the last ones were removed"
        return Compared(name, revision, since, problem)
    if _digest_at(database, name, revision) != point.head:
        problem = f"event {revision} is another one than at the checkpoint: history was written anew"
        return Compared(name, revision, since, problem)
    if report.broken is not None:
        return Compared(name, revision, since, f"event {report.broken.revision}: {report.broken.problem}")
    return Compared(name, revision, since, None)


def _digest_at(database: Database, namespace: str, revision: int) -> str | None:
    if revision == 0:
        return chain.genesis(namespace)
    with database.read() as session:
        event = session.get(EventRow, (namespace, revision))
    return None if event is None else event.digest


def _parsed(value: Any) -> Checkpoint:
    if value.keys() != {"format", "library_version", "created_at", "chains", "public_key", "signature"}:
        raise ValueError
    points = tuple(_point(point) for point in value["chains"])
    texts = [value[name] for name in ("format", "library_version", "created_at")]
    signed = [value[name] for name in ("public_key", "signature")]
    if value["format"] != FORMAT or not all(isinstance(text, str) for text in texts):
        raise ValueError
    if not all(text is None or isinstance(text, str) for text in signed):
        raise ValueError
    datetime.fromisoformat(value["created_at"])
    if len({point.namespace for point in points}) != len(points):
        raise ValueError
    return Checkpoint(**value | {"chains": points})


def _point(value: Any) -> ChainPoint:
    point = ChainPoint(**value)
    if not isinstance(point.namespace, str) or type(point.revision) is not int or not 0 <= point.revision < 2**63:
        raise ValueError
    if not _DIGEST.fullmatch(point.head):
        raise ValueError
    return point
