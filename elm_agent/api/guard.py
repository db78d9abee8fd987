"""The door in front of an ASGI application: the right host, a known token, and who holds it. Reads no bodies."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from elm_agent.api.access import Access, Holder
from elm_agent.api.failures import http_failure

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOLDER = "elm.holder"
"""Where the holder of a request's token lies in its scope."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
LARGEST_BODY = 1 << 20  # bytes; a question of the most characters takes a quarter of it, written as escapes
OPEN_PATHS = frozenset({"/health"})


class Guard:
    """Lets requests through whose token is known, with its ``Holder`` in their scope.

    ``hosts``: names by which the server may be called; None: any. Where no token is asked for this keeps web pages
    out that have their name point at this machine. A page's own cross-site requests fail at the content type.
    ``largest_body``: bytes that a request may announce; what it does not announce is counted by the application.
    """

    def __init__(
        self, app: App, access: Access, *, hosts: Collection[str] | None = None, largest_body: int = LARGEST_BODY
    ) -> None:
        self._app = app
        self._access = access
        self._hosts = hosts
        self._largest_body = largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif not self._called_rightly(scope):
            await _refuse(send, 421, "this server is not called by this name: use localhost, or start it with --host")
        else:
            await self._let_in(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        holder = self._access.holder(_token(scope))
        size = _header(scope, b"content-length") or "0"
        if holder is None and scope["path"] not in OPEN_PATHS:
            await _refuse(send, 401, "a known bearer token is needed: send `Authorization: Bearer TOKEN`")
        elif size.isdigit() and len(size) < 20 and int(size) <= self._largest_body:
            scope[HOLDER] = holder
            await self._app(scope, receive, send)
        else:
            await _refuse(send, 413, f"the body is larger than {self._largest_body} bytes: ask something shorter")

    def _called_rightly(self, scope: Scope) -> bool:
        if self._hosts is None:
            return True
        host = _header(scope, b"host") or ""
        name, port = host.rpartition(":")[::2]
        return (name if name and port.isdigit() else host).lower() in self._hosts


def holder_of(scope: Scope) -> Holder:
    """Who asks, as the guard has found."""
    holder: Holder = scope[HOLDER]
    return holder


def _token(scope: Scope) -> str | None:
    kind, _, token = (_header(scope, b"authorization") or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def _header(scope: Scope, name: bytes) -> str | None:
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else None


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps(http_failure(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
