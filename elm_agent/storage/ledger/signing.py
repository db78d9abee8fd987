"""Ed25519 signatures (RFC 8032), from ``cryptography``: for checkpoints and packs. Knows bytes; not what they mean.

A private key is a PEM file (PKCS 8) that only its owner can read. A public key is one line, ``ed25519:<base64>``, on
its own or in a file; a PEM public key is read as well.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from elm_agent.errors import InputError, StorageError
from elm_agent.storage.vault.master_keys import read_private, write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_LINE = re.compile(r"ed25519:([A-Za-z0-9+/]{43}=)")
_LARGEST = 10_000  # bytes of a key file


class BadSignature(InputError):
    """A signature does not fit the bytes and the public key."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Checks signatures. ``raw``: 32 bytes."""

    raw: bytes

    def __str__(self) -> str:
        return f"ed25519:{base64.b64encode(self.raw).decode()}"

    @property
    def fingerprint(self) -> str:
        """``sha256:<hex>`` of the 32 bytes."""
        return "sha256:" + hashlib.sha256(self.raw).hexdigest()

    @classmethod
    def read(cls, given: str | Path) -> PublicKey:
        """From ``ed25519:<base64>`` itself, or a file that holds it or a PEM public key. Raises ``InputError``."""
        line = _LINE.fullmatch(str(given).strip())
        if line is None:
            path = Path(given)
            try:
                with open(path, encoding="ascii") as file:
                    text = file.read(_LARGEST)
            except UnicodeDecodeError:
                raise InputError(f"{path} is no public key: expected ed25519:<base64> or PEM") from None
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "not a file name"
                raise InputError(f"public key {str(given)[:80]!r} cannot be read: {reason}") from None
            if "PRIVATE KEY" in text:
                raise InputError(f"{path} is a private key: give the public one, which `elm-agent keys show` prints")
            line = _LINE.fullmatch(text.strip())
            if line is None:
                return cls(_from_pem(text, path))
        try:
            raw = base64.b64decode(line[1], validate=True)
        except binascii.Error:
            raise InputError("the public key is not base64: expected ed25519:<base64 of 32 bytes>") from None
        return cls(raw)

    def verify(self, data: bytes, signature: str) -> None:
        """Raise ``BadSignature`` unless ``signature`` was made for ``data`` by this key's private half."""
        _needs_package()
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            raw = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            raise BadSignature("the signature is not base64: expected 64 bytes of Ed25519") from None
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(raw, data)
        except InvalidSignature:
            raise BadSignature(
                f"the signature does not fit: the content was altered, or another key than {self} signed it"
            ) from None
        except ValueError:
            raise BadSignature(f"{self} is no Ed25519 public key") from None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Makes signatures."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        _needs_package()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """From a PEM file. Raises ``SettingsError`` when others can read it, ``InputError`` when it is no key."""
        _needs_package()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        text = read_private(path)
        try:
            key = load_pem_private_key(text.encode("ascii"), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InputError(f"{path} is no private key in PEM: `elm-agent keys new --out FILE` makes one") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path} holds a key of another kind than Ed25519: `elm-agent keys new` makes one")
        return cls(key)

    def write(self, path: Path) -> None:
        """A new PEM file that only its owner can read. Raises ``SettingsError``, also when it exists."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        write_private(path, self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> str:
        """64 bytes in base64; the same for the same data."""
        return base64.b64encode(self._key.sign(data)).decode()


def _from_pem(text: str, path: Path) -> bytes:
    _needs_package()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(text.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path} is no public key: expected ed25519:<base64> or PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} holds a key of another kind than Ed25519")
    return key.public_bytes_raw()


def _needs_package() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise StorageError("signatures need a package: run `pip install 'elm-agent[encryption]'`") from None
