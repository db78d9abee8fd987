"""Does a store of tensors answer, and what in it does no memory name? Knows no rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from elm_agent.errors import TensorMissing
from elm_agent.protocols import TensorStore
from elm_agent.storage.health.findings import Finding, FindingKind
from elm_agent.storage.tensors.names import digest_of_bytes

_NOTHING = "default", digest_of_bytes(b"")  # no tensor is empty


def ask(store: TensorStore) -> None:
    """Ask the least that there is to ask. Raises ``StorageError`` when the store does not answer."""
    with suppress(TensorMissing):
        store.age(*_NOTHING)


def stored(store: TensorStore) -> set[tuple[str, str]]:
    """(namespace, digest) of everything. Raises ``StorageError``."""
    return {(namespace, digest) for namespace in store.namespaces() for digest in store.digests(namespace)}


def rubbish(
    store: TensorStore, unnamed: set[tuple[str, str]], checked: Counter[str], *, grace: float, repair: bool
) -> Iterator[Finding]:
    """What no memory names, of tensors and temporary files, unless it is younger than ``grace`` seconds."""
    for namespace, digest in sorted(unnamed):
        try:
            age = store.age(namespace, digest)
        except TensorMissing:  # somebody else has just collected it
            continue
        if age < grace:
            checked["tensors in flight"] += 1
            continue
        if repair and not store.delete(namespace, digest, older_than_seconds=grace):
            continue  # stored again meanwhile: it is being published
        action = "deleted" if repair else None
        yield Finding(FindingKind.ORPHAN_TENSOR, digest, namespace, "no memory names it", action)
    problem = "a temporary file of a writer that was killed"
    for name in store.sweep(grace) if repair else store.temporary(grace):
        yield Finding(FindingKind.TEMPORARY_FILE, name, None, problem, "deleted" if repair else None)
