"""Where a server's index lies: its address, and the part of the server that is this bank's. Opens no connection."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlalchemy import URL

from elm_agent.errors import SettingsError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """``KIND+http(s)://HOST:PORT[/BANK]``. ``bank`` tells the banks of one server apart."""

    kind: str
    host: str
    port: int
    secure: bool
    bank: str

    @property
    def address(self) -> str:
        """As a browser would take it."""
        return f"http{'s' if self.secure else ''}://{self.host}:{self.port}"

    @property
    def index_name(self) -> str:
        """A name that no other server or bank has."""
        return f"{self.kind}-{hashlib.sha256(f'{self.address}/{self.bank}'.encode()).hexdigest()[:12]}"


def parse_server_url(url: str, database: URL) -> ServerUrl:
    """Read an ``index`` setting; a bank that has no name in it is called after its database.

    Raises ``SettingsError``: no host, a port that is none, a user or password, or a name that cannot be one.
    """
    scheme, _, rest = url.partition("://")
    kind, _, protocol = scheme.partition("+")
    try:
        parts = urlsplit(f"{protocol}://{rest}")
        port = parts.port or _PORTS[protocol]
    except (ValueError, KeyError) as error:
        raise SettingsError(
            f"the index URL {url[:80]!r} cannot be read ({error}): expected {kind}+http://HOST:PORT"
        ) from None
    if not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(f"the index URL {url[:80]!r} names no server: expected {kind}+http://HOST:PORT[/BANK]")
    if parts.username or parts.password:
        raise SettingsError(
            "an index URL holds no password: give it in the environment (CHROMA_TOKEN, QDRANT_API_KEY)"
        )
    bank = parts.path.strip("/") or _called_after(database)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", bank):
        raise SettingsError(
            f"the bank {bank[:80]!r} of the index URL is no name: expected letters, digits, '-' and '_'"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return ServerUrl(kind, host, port, protocol == "https", bank)


def _called_after(database: URL) -> str:
    where = f"{database.get_backend_name()}://{database.host or ''}:{database.port or ''}/{database.database or ''}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]
