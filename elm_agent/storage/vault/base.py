"""What keeps questions, answers and tensors unreadable to whoever holds the disk. Knows no SQL and no memories.

Every text and tensor passes through a vault on its way into a store and back. ``PlainVault`` leaves all as it is;
``vault_encrypted`` holds the one that encrypts.
"""

from __future__ import annotations

from typing import Protocol

from elm_agent.errors import VaultLocked

SEALED_TEXT = "elm1:"
SEALED_BYTES = b"elm1"
_ESCAPE = "elm0:"
GIVE_KEY = (
    "give its key by the setting encryption.key_file or encryption.key_env (ELM_ENCRYPTION__KEY_FILE, "
    "ELM_ENCRYPTION__KEY_ENV)"
)


class Vault(Protocol):
    """Seals what is written for one namespace. Any thread may call any method.

    What was written before encryption was switched on is not sealed; ``open`` and ``open_bytes`` return it as it is.
    """

    def ensure(self, namespace: str) -> None:
        """Make the keys of a namespace that is in the bank, unless it has them. Never within a transaction."""
        ...

    def seal(self, namespace: str, text: str) -> str:
        """What is stored instead of ``text``; two calls give two results. Raises ``StorageError`` without a key."""
        ...

    def open(self, namespace: str, text: str) -> str:
        """The text again. Raises ``StorageError`` for a wrong key or altered text."""
        ...

    def seal_bytes(self, namespace: str, data: bytes) -> bytes: ...

    def open_bytes(self, namespace: str, data: bytes) -> bytes:
        """Raises ``TensorCorrupt`` for altered bytes, ``StorageError`` for a wrong key."""
        ...

    def blind(self, namespace: str, text: str) -> str:
        """A name for ``text`` that equal texts share and that does not tell it: for look-ups by equality."""
        ...


class PlainVault:
    """Encrypts nothing. A text that looks sealed is stored with ``_ESCAPE`` in front, and so never mistaken."""

    def ensure(self, namespace: str) -> None:
        """Needs no keys."""

    def seal(self, namespace: str, text: str) -> str:  # noqa: ARG002
        return _ESCAPE + text if text.startswith((SEALED_TEXT, _ESCAPE)) else text

    def open(self, namespace: str, text: str) -> str:
        if text.startswith(SEALED_TEXT):
            raise VaultLocked(f"a text of namespace {namespace!r} is sealed: {GIVE_KEY}")
        return text.removeprefix(_ESCAPE)

    def seal_bytes(self, namespace: str, data: bytes) -> bytes:  # noqa: ARG002
        return data

    def open_bytes(self, namespace: str, data: bytes) -> bytes:
        if data.startswith(SEALED_BYTES):  # no safetensors file begins so: it would have a header of 800 MB
            raise VaultLocked(f"a tensor of namespace {namespace!r} is sealed: {GIVE_KEY}")
        return data

    def blind(self, namespace: str, text: str) -> str:  # noqa: ARG002
        return text


class LockedVault(PlainVault):
    """For an encrypted bank that was opened without its key: reads what is not sealed, writes nothing readable."""

    def ensure(self, namespace: str) -> None:
        raise self._locked(namespace)

    def seal(self, namespace: str, text: str) -> str:  # noqa: ARG002
        raise self._locked(namespace)

    def seal_bytes(self, namespace: str, data: bytes) -> bytes:  # noqa: ARG002
        raise self._locked(namespace)

    def blind(self, namespace: str, text: str) -> str:  # noqa: ARG002
        raise self._locked(namespace)

    @staticmethod
    def _locked(namespace: str) -> VaultLocked:
        return VaultLocked(f"the bank is encrypted, and namespace {namespace!r} takes nothing readable: {GIVE_KEY}")
