"""Files derived from the bank, which may lie: snapshots of keys, cached tensors. Deleting one costs only time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from elm_agent.storage.bank import Bank
from elm_agent.storage.health.findings import Finding, FindingKind
from elm_agent.storage.tensors.remote import FsspecTensors


def damaged_snapshots(bank: Bank, checked: Counter[str], *, repair: bool) -> Iterator[Finding]:
    """Snapshots of the exact index that are not what was written. A search deletes such a one too."""
    for path, whole in bank.exact.examine(repair=repair):
        checked["snapshots"] += 1
        if not whole:
            problem = "a snapshot of keys that is not what was written"
            action = "deleted; the next search reads the keys from the database" if repair else None
            yield Finding(FindingKind.DAMAGED_SNAPSHOT, str(path), None, problem, action)


def surplus_copies(
    bank: Bank, named: Collection[tuple[str, str]], checked: Counter[str], *, repair: bool
) -> Iterator[Finding]:
    """Cached copies on this machine of tensors that no memory names, such as those purged from another machine.

    ``named``: (namespace, digest) of all that memories name.
    """
    cache = bank.tensors.cache if isinstance(bank.tensors, FsspecTensors) else None
    for namespace, digest in list(cache.copies()) if cache is not None else []:
        checked["cached tensors"] += 1
        if (namespace, digest) in named:
            continue
        action = None
        if repair:
            assert cache is not None
            cache.forget(namespace, digest)
            action = "deleted"
        yield Finding(FindingKind.SURPLUS_COPY, digest, namespace, "a cached copy that no memory names", action)
