"""The vault that encrypts: envelope keys per namespace, unwrapped once and kept in memory. Knows no memories.

What was written before encryption was switched on is read as it is. Once ``rotation`` has sealed the whole namespace
(or from the start, in one that was made encrypted) a readable tensor is refused, and so is a text that could be a
damaged sealed one. Readable texts there are the bank's own words about jobs.
"""

from __future__ import annotations

import re
import time

from elm_agent.errors import StorageError, TensorCorrupt, VaultLocked
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import storable
from elm_agent.storage.vault import crypto
from elm_agent.storage.vault.base import SEALED_TEXT, PlainVault
from elm_agent.storage.vault.keys import KeyRing, load_ring, make_keys, without_keys
from elm_agent.storage.vault.master_keys import MasterKeys

_FRESH_SECONDS = 30.0  # how long ``ensure`` believes the keys in memory; a new version is met earlier by reading
_PLAIN = PlainVault()
_WORD = re.compile(r"\S{38,}")  # what a sealed text still looks like when its first letters are damaged


class EncryptedVault:
    """A ``Vault`` with AES-256-GCM (``vault_crypto``). ``masters`` is asked whenever a wrapped key is met."""

    def __init__(self, database: Database, masters: MasterKeys) -> None:
        self._database = database
        self._masters = masters
        self._rings: dict[str, tuple[KeyRing, float]] = {}

    @property
    def masters(self) -> MasterKeys:
        """Where the master key comes from."""
        return self._masters

    def __repr__(self) -> str:
        return f"EncryptedVault(master key from {self._masters.where})"

    def ensure(self, namespace: str) -> None:
        """Also learns of keys that another process made or rotated.

        Raises:
            VaultLocked: the namespace's keys were wrapped by another master key.
            SettingsError: there is no usable master key where it should be.
        """
        known = self._rings.get(namespace)
        if known is not None and time.monotonic() - known[1] < _FRESH_SECONDS:
            return
        if self._load(namespace) is None:
            make_keys(self._database, namespace, self._masters)
            self._load(namespace)

    def ensure_all(self) -> None:
        """``ensure`` for every namespace without keys: for a bank in which encryption is switched on."""
        for namespace in without_keys(self._database):
            self.ensure(namespace)

    def seal(self, namespace: str, text: str) -> str:
        ring = self._ring(namespace)
        blob = self._seal(ring, namespace, "text", storable(text).encode("utf-8"))
        return crypto.to_text(blob)

    def open(self, namespace: str, text: str) -> str:
        if (blob := crypto.from_text(text)) is not None:
            try:
                return self._open(namespace, "text", blob).decode("utf-8")
            except crypto.NotOpened as error:
                raise _altered(namespace, str(error)) from None
        if text.startswith(SEALED_TEXT):
            raise _altered(namespace, "its base64 is damaged")
        ring = self._maybe(namespace)
        if ring is not None and ring.sealed and _WORD.fullmatch(text):
            raise _altered(namespace, "it is not sealed, as all others there are, or its first letters are damaged")
        return _PLAIN.open(namespace, text)

    def seal_bytes(self, namespace: str, data: bytes) -> bytes:
        return self._seal(self._ring(namespace), namespace, "tensor", data)

    def open_bytes(self, namespace: str, data: bytes) -> bytes:
        if crypto.version_of(data) is None:
            ring = self._maybe(namespace)
            if ring is not None and ring.sealed:
                raise TensorCorrupt(f"a tensor of namespace {namespace!r} is not sealed, as all others there are")
            return data
        try:
            return self._open(namespace, "tensor", data)
        except crypto.NotOpened as error:
            raise TensorCorrupt(f"a tensor of namespace {namespace!r} cannot be opened: {error}") from None

    def blind(self, namespace: str, text: str) -> str:
        return crypto.blind(self._ring(namespace).blind, storable(text))

    # --- keys -------------------------------------------------------------------------------------------

    def ring(self, namespace: str) -> KeyRing:
        """The keys as they are in the database now. Raises ``VaultLocked``."""
        if (ring := self._load(namespace)) is None:
            raise _without(namespace)
        return ring

    def _ring(self, namespace: str) -> KeyRing:
        if (ring := self._maybe(namespace)) is None:
            raise _without(namespace)
        return ring

    def _maybe(self, namespace: str) -> KeyRing | None:
        known = self._rings.get(namespace)
        return known[0] if known is not None else self._load(namespace)

    def _load(self, namespace: str) -> KeyRing | None:
        ring = load_ring(self._database, namespace, self._masters)
        if ring is not None:
            self._rings[namespace] = (ring, time.monotonic())
        return ring

    @staticmethod
    def _seal(ring: KeyRing, namespace: str, purpose: str, data: bytes) -> bytes:
        version = ring.current
        return crypto.seal(ring.data[version], data, namespace=namespace, purpose=purpose, version=version)

    def _open(self, namespace: str, purpose: str, blob: bytes) -> bytes:
        version = crypto.version_of(blob)
        assert version is not None
        ring = self._ring(namespace)
        if version not in ring.data:
            ring = self.ring(namespace)  # rotated since by another process
        if version not in ring.data:
            raise crypto.NotOpened(f"it names key version {version}, which the namespace does not have")
        return crypto.unseal(ring.data[version], blob, namespace=namespace, purpose=purpose)


def _altered(namespace: str, why: str) -> StorageError:
    return StorageError(f"a sealed text of namespace {namespace!r} cannot be opened: {why}")


def _without(namespace: str) -> VaultLocked:
    return VaultLocked(f"namespace {namespace!r} has no keys in this bank yet: bind it first")
