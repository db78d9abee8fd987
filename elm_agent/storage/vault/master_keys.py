"""Where a bank's master key comes from: the environment, a file, or the user's own function. Seals nothing itself.

A source may hold several keys, in base64, parted by white space: the first one is for new work, all of them open what
they once wrapped. So a key is changed without a pause: put the new one in front everywhere, run
`elm-agent encryption rotate`, then take the old one away. No key, nor any part of one, is in a message or a repr.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import inspect
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from elm_agent.errors import SettingsError
from elm_agent.storage.vault.crypto import KEY_BYTES, new_key

KeyFunction = Callable[[], bytes] | Callable[[str | None], bytes]
"""A user's own source of the master key: called with nothing, or with the id of the key that is wanted (None: the
one for new work). Returns 32 bytes."""

_MAKE_ONE = "`elm-agent encryption new-key` prints a new one"


@dataclass(frozen=True, slots=True)
class MasterKey:
    """32 bytes that wrap the keys of namespaces, and the name that tells two of them apart."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != KEY_BYTES:
            got = f"{len(self.secret)} bytes" if isinstance(self.secret, bytes) else type(self.secret).__name__
            raise SettingsError(f"a master key is {KEY_BYTES} bytes; got {got}; {_MAKE_ONE}")

    @classmethod
    def decoded(cls, word: str, where: str = "the key") -> MasterKey:
        """From base64. Raises ``SettingsError``, in words that do not hold the key."""
        try:
            secret = base64.b64decode(word.replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            raise SettingsError(f"{where} holds something that is not base64; {_MAKE_ONE}") from None
        if len(secret) != KEY_BYTES:
            raise SettingsError(f"{where} holds a key of {len(secret)} bytes, expected {KEY_BYTES}; {_MAKE_ONE}")
        return cls(secret)

    @property
    def id(self) -> str:
        """``mk-`` and 16 hex digits; tells nothing of the key."""
        return "mk-" + hmac.new(self.secret, b"elm-agent master key id", hashlib.sha256).hexdigest()[:16]


class MasterKeys(Protocol):
    """A source of master keys. Asked again at each need, so that a changed file counts without a restart."""

    where: str  # for people: "environment variable X"

    def current(self) -> MasterKey:
        """The key for new work. Raises ``SettingsError``."""
        ...

    def named(self, master_id: str) -> MasterKey | None:
        """The key of this id, or None. Raises ``SettingsError``."""
        ...


class _Listed:
    """A source that reads all of its keys at once."""

    def __init__(self, where: str, read: Callable[[], str]) -> None:
        self.where = where
        self._read = read

    def current(self) -> MasterKey:
        return self._keys()[0]

    def named(self, master_id: str) -> MasterKey | None:
        return next((key for key in self._keys() if key.id == master_id), None)

    def _keys(self) -> list[MasterKey]:
        keys = [MasterKey.decoded(word, self.where) for word in self._read().split()]
        if not keys:
            raise SettingsError(
                f"{self.where} holds no master key: expected {KEY_BYTES} bytes in base64; {_MAKE_ONE}"
            )
        return keys


class _Called:
    """A user's own function."""

    where = "the function given as encryption_key"

    def __init__(self, function: KeyFunction) -> None:
        self._function = function
        self._takes_id = _takes_argument(function)

    def current(self) -> MasterKey:
        return self._call(None)

    def named(self, master_id: str) -> MasterKey | None:
        key = self._call(master_id)
        return key if key.id == master_id else None

    def _call(self, master_id: str | None) -> MasterKey:
        if self._takes_id:
            return MasterKey(cast(Callable[[str | None], bytes], self._function)(master_id))
        return MasterKey(cast(Callable[[], bytes], self._function)())


def from_environment(name: str) -> MasterKeys:
    """Keys in an environment variable."""

    def read() -> str:
        if name not in os.environ:
            raise SettingsError(f"the master key should be in environment variable {name}, which is not set")
        return os.environ[name]

    return _Listed(f"environment variable {name}", read)


def from_file(path: Path) -> MasterKeys:
    """Keys in a file that only its owner can read."""
    return _Listed(f"key file {path}", lambda: read_private(path))


def from_function(function: KeyFunction) -> MasterKeys:
    """Keys from a user's own function, for example one that asks a key service."""
    if not callable(function):
        raise SettingsError(f"encryption_key takes a function that returns 32 bytes; got {type(function).__name__}")
    return _Called(function)


def source(
    *, key_env: str | None = None, key_file: Path | None = None, function: KeyFunction | None = None
) -> MasterKeys | None:
    """The one source that was named; None without one. Raises ``SettingsError`` for two."""
    given = [
        name for name, value in (("key_env", key_env), ("key_file", key_file), ("encryption_key", function)) if value
    ]
    if len(given) > 1:
        raise SettingsError(f"the master key has one source; got {' and '.join(given)}: leave one of them")
    if key_env is not None:
        return from_environment(key_env)
    if key_file is not None:
        return from_file(key_file)
    return from_function(function) if function is not None else None


def new_master_key() -> str:
    """A new master key in base64, as files and environment variables hold it."""
    return base64.b64encode(new_key()).decode()


def read_private(path: Path) -> str:
    """The text of a file with a secret. Raises ``SettingsError`` when others than its owner can read it."""
    try:
        with open(path, encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise SettingsError(
                    f"key file {path} can be read by others (mode {mode:04o}): `chmod 600 {path}`, and use a new key"
                )
            return file.read()
    except SettingsError:
        raise
    except UnicodeDecodeError:
        raise SettingsError(f"key file {path} is not text: expected a key in base64; {_MAKE_ONE}") from None
    except OSError as error:
        raise SettingsError(f"key file {str(path)[-200:]!r} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"key file {str(path)[-200:]!r} is no file name: it holds NUL or the like") from None


def write_private(path: Path, data: bytes) -> None:
    """A new file that only its owner can read. Raises ``SettingsError``; an existing one is never overwritten."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SettingsError(f"{path} exists already, and a key is never overwritten: name another file") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _takes_argument(function: KeyFunction) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
