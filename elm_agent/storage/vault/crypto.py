"""How bytes are sealed: AES-256-GCM and HMAC-SHA-256 from ``cryptography``. Knows no database and no key's origin.

A sealed blob is ``MAGIC | version (4 bytes, big endian) | nonce (12) | ciphertext and tag (n + 16)``. The version
says which of a namespace's keys sealed it. Namespace, purpose and version are authenticated (AES-GCM's associated
data), so a blob opens only where it was sealed for. Nonces are 96 random bits: one key may seal 2^32 blobs before two
nonces meet with a chance above 2^-32 (NIST SP 800-38D, section 8.3); rotate a data key long before that.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from typing import TYPE_CHECKING

from elm_agent.errors import StorageError
from elm_agent.storage.vault.base import SEALED_BYTES, SEALED_TEXT

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = SEALED_BYTES
ALGORITHM = "aes-256-gcm"
BLINDED = "hmac-sha256:"
KEY_BYTES = 32
_NONCE = 12
_TAG = 16
_HEAD = len(MAGIC) + 4
_TEXT = re.compile(r"elm1:([1-9][0-9]{0,8}):([A-Za-z0-9_-]{38,})")


class NotOpened(StorageError):
    """A blob is not what was sealed: altered, cut, or from another namespace. Callers say which one it was."""


def new_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_BYTES)


def seal(key: bytes, data: bytes, *, namespace: str, purpose: str, version: int) -> bytes:
    """A blob that only ``unseal`` with the same key, namespace and purpose opens; another one at each call."""
    nonce = os.urandom(_NONCE)
    body = _cipher(key).encrypt(nonce, data, _bound(namespace, purpose, version))
    return MAGIC + version.to_bytes(4, "big") + nonce + body


def unseal(key: bytes, blob: bytes, *, namespace: str, purpose: str) -> bytes:
    """What was sealed. Raises ``NotOpened``."""
    from cryptography.exceptions import InvalidTag

    version = version_of(blob)
    if version is None:
        raise NotOpened("it is not sealed, or its header was altered")
    nonce, body = blob[_HEAD : _HEAD + _NONCE], blob[_HEAD + _NONCE :]
    try:
        return _cipher(key).decrypt(nonce, body, _bound(namespace, purpose, version))
    except InvalidTag:
        raise NotOpened("it was altered, or sealed for another place") from None


def version_of(blob: bytes) -> int | None:
    """The key version of a sealed blob; None for bytes that are none."""
    if not blob.startswith(MAGIC) or len(blob) < _HEAD + _NONCE + _TAG:
        return None
    return int.from_bytes(blob[len(MAGIC) : _HEAD], "big") or None


def to_text(blob: bytes) -> str:
    """A blob as one word: ``elm1:<version>:<base64 of nonce, ciphertext and tag>``."""
    version = int.from_bytes(blob[len(MAGIC) : _HEAD], "big")
    return f"{SEALED_TEXT}{version}:{base64.urlsafe_b64encode(blob[_HEAD:]).decode().rstrip('=')}"


def from_text(text: str) -> bytes | None:
    """The blob of a word that ``to_text`` made; None for any other text."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    try:
        body = base64.b64decode(match[2] + "=" * (-len(match[2]) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    blob = MAGIC + int(match[1]).to_bytes(4, "big") + body
    return blob if to_text(blob) == text else None  # one blob has one word: no bit of it is free to change


def blind(key: bytes, text: str) -> str:
    """``hmac-sha256:<64 hex>``: equal for equal texts, and tells nothing of them to who lacks the key."""
    return BLINDED + hmac.new(key, text.encode("utf-8"), hashlib.sha256).hexdigest()


def _bound(namespace: str, purpose: str, version: int) -> bytes:
    parts = (b"elm-agent", purpose.encode(), namespace.encode("utf-8", "surrogatepass"), b"%d" % version)
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ModuleNotFoundError:
        raise StorageError("encryption needs a package: run `pip install 'elm-agent[encryption]'`") from None
    return AESGCM(key)
