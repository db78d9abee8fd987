"""Who may ask, and about which namespaces: bearer tokens, kept as hashes. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elm_agent.errors import NotFound, SettingsError
from elm_agent.settings import check_namespace

SHORTEST_TOKEN = 20  # characters; of 64 kinds they are 120 bits
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what a bearer token may be, RFC 6750 section 2.1
_MAKE_ONE = 'make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`'


@dataclass(frozen=True, slots=True)
class Holder:
    """Whoever asks. ``namespaces``: those that exist for him; None: all."""

    namespaces: tuple[str, ...] | None = None

    def may(self, namespace: str) -> bool:
        return self.namespaces is None or namespace in self.namespaces

    def check(self, namespace: str) -> str:
        """The namespace, or the same ``NotFound`` whether it is another's or nobody's."""
        if not self.may(namespace):
            raise no_namespace(namespace)
        return namespace


EVERYTHING = Holder()


class Access:
    """Tokens and their holders. Without tokens everybody holds everything: for one machine's own use."""

    def __init__(self, tokens: Mapping[str, Holder] | None = None) -> None:
        self._holders = None if tokens is None else {_hashed(token): holder for token, holder in tokens.items()}

    @property
    def open(self) -> bool:
        """Whether no token is asked for."""
        return self._holders is None

    def holder(self, token: str | None) -> Holder | None:
        """Whose token it is, or None."""
        if self._holders is None:
            return EVERYTHING
        return None if token is None else self._holders.get(_hashed(token))  # hashes may differ in time, tokens not


def read_tokens(path: Path) -> Access:
    """Access by the tokens of a file: a token a line, then the namespaces it is bound to, if it is; # comments.

    Raises:
        SettingsError: others can read it, it has no token, or a line that is none.
    """
    tokens: dict[str, Holder] = {}
    for number, line in enumerate(_private_text(path).splitlines(), start=1):
        token, *names = line.partition("#")[0].split() or [""]
        if not token:
            continue
        if len(token) < SHORTEST_TOKEN or not _TOKEN.fullmatch(token):
            raise SettingsError(
                f"line {number} of token file {path} begins with no token: expected at least {SHORTEST_TOKEN} "
                f"letters, digits or '._~+/-'; {_MAKE_ONE}"
            )
        if token in tokens:
            raise SettingsError(f"line {number} of token file {path} has a token again: leave one of the lines out")
        tokens[token] = Holder(tuple(check_namespace(name) for name in names) or None)
    if not tokens:
        raise SettingsError(f"token file {path} has no token: {_MAKE_ONE}")
    return Access(tokens)


def no_namespace(namespace: str) -> NotFound:
    return NotFound(f"namespace {namespace[:100]!r} is not in this bank")


def _private_text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise SettingsError(
                    f"token file {path} can be read by others (mode {mode:04o}): `chmod 600 {path}`, "
                    "and use new tokens"
                )
            return file.read()
    except UnicodeDecodeError:
        raise SettingsError(f"token file {path} is not text: expected a token a line; {_MAKE_ONE}") from None
    except OSError as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"token file {str(path)[-200:]!r} cannot be read: {error.strerror}") from None


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
