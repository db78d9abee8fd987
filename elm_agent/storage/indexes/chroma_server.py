"""Nearest keys in a Chroma server, which any number of processes and hosts may ask. Knows nothing of SQL.

The collections of a bank begin with its name, and one more, empty, is the mark that they were fed: a server that
has lost it, or was given a new disk, has to be fed again (``rebuilt``). What is deleted stays in the log of the
server until it vacuums (``chroma utils vacuum``), so this index does not promise ``ERASES``.

An access token comes from the environment, ``CHROMA_TOKEN``, and is sent as ``Authorization: Bearer``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from elm_agent.errors import IndexUnavailable
from elm_agent.protocols import IndexCapability, IndexEntry
from elm_agent.records import KeyKind
from elm_agent.storage.indexes.chroma_keys import ChromaKeys, explained
from elm_agent.storage.indexes.chroma_probe import collection_options
from elm_agent.storage.indexes.feed import IndexMadeAnew, once_more
from elm_agent.storage.indexes.server_urls import ServerUrl

TOKEN = "CHROMA_TOKEN"


class ChromaServerIndex(ChromaKeys):
    """A ``KeyIndex`` on the server of ``url``, connected at first use. Approximate: the caller re-checks its hits.

    ``connect_seconds``, ``answer_seconds``: how long to wait for the server before it counts as unreachable.
    """

    capabilities = frozenset(
        {IndexCapability.BASE, IndexCapability.DURABLE, IndexCapability.SHARED, IndexCapability.WIDE}
    )
    width_limit: int | None = None

    def __init__(self, url: ServerUrl, *, connect_seconds: float = 3.0, answer_seconds: float = 60.0) -> None:
        super().__init__()
        self.url = url
        self.name = url.index_name
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._fed = False

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        """See ``ChromaKeys``. Once more when another process has made the collection anew: a change is idempotent."""
        once_more(partial(super().apply, namespace, kind, list(upsert), list(delete)))

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        return once_more(partial(super().ids, namespace, kind))

    @property
    def rebuilt(self) -> bool:
        """Whether the server does not know this bank, or was never fed to the end. Raises ``IndexUnavailable``."""
        with self._open():
            self._fed = self._fed or self._exists(self._mark)
            return not self._fed

    def acknowledge_rebuild(self) -> None:
        with self._open():
            self._client.get_or_create_collection(self._mark, **collection_options())
            self._fed = True

    def scrub(self, namespace: str) -> bool:
        """Drop the collections of the namespace, with their graphs; the server's log is out of reach from here."""
        with self._open():
            for kind in KeyKind:
                self._drop(self._name(namespace, kind))
        return True

    def wipe(self) -> None:
        """Drop every collection of this bank, and no other."""
        with self._open():
            self._fed = False
            self._drop(self._mark)  # first: a crash from here on cannot lose that a feed is due
            for found in self._client.list_collections():
                if found.name.startswith(self._prefix):
                    self._drop(found.name)

    def close(self) -> None:
        """Let the connection go. The index connects again at its next use."""
        with self._lock:
            self._disconnect()

    @property
    def _prefix(self) -> str:
        return f"elm.{self.url.bank}."

    @property
    def _mark(self) -> str:
        return f"{self._prefix}fed"

    def _name(self, namespace: str, kind: KeyKind) -> str:
        return self._prefix + super()._name(namespace, kind)

    def _drop(self, name: str) -> None:
        self._collections.pop(name, None)
        if self._exists(name):
            self._client.delete_collection(name)

    def _exists(self, name: str) -> bool:
        names = {found.name for found in self._client.list_collections()}
        if self._fed and self._mark not in names:
            raise IndexUnavailable(
                f"the Chroma server {self.url.address} has lost the keys of this bank: feed it anew"
            )
        return name in names

    @contextmanager
    def _open(self) -> Iterator[None]:
        """After any failure everything that was known of the server is asked again."""
        with self._lock:
            try:
                with explained(self._unavailable):
                    if self._client is None:
                        self._client = self._connected()
                    yield
            except IndexUnavailable:
                self._disconnect()
                raise

    def _connected(self) -> Any:
        import chromadb
        import httpx
        from chromadb.config import Settings

        timeout = httpx.Timeout(self._answer_seconds, connect=self._connect_seconds)
        httpx.get(f"{self.url.address}/api/v2/heartbeat", timeout=timeout, trust_env=False).raise_for_status()
        token = os.environ.get(TOKEN)
        client = chromadb.HttpClient(
            host=self.url.host,
            port=self.url.port,
            ssl=self.url.secure,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            settings=Settings(_env_file=None, anonymized_telemetry=False, chroma_otel_collection_endpoint=""),
        )
        for part in (client, client._admin_client):
            part._server._session.timeout = timeout  # the client waits for ever, and has no setting for it
        return client

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._collections.clear()
        self._fed = False
        if client is not None:
            for part in (client, client._admin_client):  # each has a session, which its close leaves open
                part._server._session.close()
            client.close()

    def _unavailable(self, error: BaseException) -> IndexUnavailable:
        from chromadb.errors import NotFoundError

        kind = IndexMadeAnew if isinstance(error, NotFoundError) else IndexUnavailable
        return kind(
            f"the Chroma server {self.url.address} failed ({type(error).__name__}: {str(error)[:200]}); tried to "
            f"connect for {self._connect_seconds:g} s: check that it runs, `elm-agent index status` tries again"
        )
