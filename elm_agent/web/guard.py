"""What stands before every view: whose page it is, how much is read, who is let in, and what the browser may do.

A request is refused here by its head alone, but for the token in a form, which ``forms`` compares. Knows no bank.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elm_agent.web.sessions import LIFE_SECONDS, Session, Sessions

LONGEST_PATH = 500
LONGEST_QUERY = 2000
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
FREE = ("/login", "/static/")  # seen without a token

POLICY = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with `no-referrer` a browser would not tell the origin of a form
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Refuse = Callable[[Scope, int, str], Response]
"""``refuse(scope, status, sentence)``: the page that says so."""


class Guard:
    """An ASGI middleware. ``hosts``: names under which the page is asked for, beside addresses in digits."""

    def __init__(
        self, app: ASGIApp, *, sessions: Sessions, cookie: str, hosts: frozenset[str], refuse: Refuse
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._cookie = cookie
        self._hosts = hosts
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        known = self._sessions.read(_cookie(headers, self._cookie))
        session = known or self._sessions.begin()
        scope["session"] = session
        answer = self._answer(scope, headers, session, known is not None)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in POLICY.items():
                    out[name] = value
                if scope["session"] is not known and not _from_elsewhere(headers):
                    out.append("set-cookie", self._set_cookie(scope["session"], headers))
            await send(message)

        await (self._app if answer is None else answer)(scope, receive, guarded)

    def _answer(self, scope: Scope, headers: Headers, session: Session, known: bool) -> Response | None:
        """The refusal, or None."""
        if not self._is_ours(headers.get("host", "")):
            return self._refuse(scope, 403, "this page is not served under that name: use its address")
        if len(scope["path"]) > LONGEST_PATH or len(scope["query_string"]) > LONGEST_QUERY:
            return self._refuse(scope, 414, f"the address is too long: at most {LONGEST_QUERY} characters of query")
        if scope["method"] in UNSAFE and not _same_origin(headers):
            return self._refuse(scope, 403, "the form was sent from another page than this one: nothing was done")
        if scope["path"].startswith(FREE):
            return None
        if not known and _from_elsewhere(headers):  # the browser keeps a strict cookie back; another click brings it
            return self._refuse(scope, 403, "another site led here: follow the link below to come in")
        if session.holder is None:
            if scope["method"] in UNSAFE or scope["path"].endswith(".json"):
                return self._refuse(scope, 403, "sign in first: your session is over or was never one")
            return RedirectResponse("/login", status_code=303)
        return None

    def _is_ours(self, host: str) -> bool:
        """Against DNS rebinding, which needs a name: no foreign name, an address in digits is our own."""
        name = host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._hosts
        return True

    def _set_cookie(self, session: Session, headers: Headers) -> str:
        secure = "; Secure" if headers.get("origin", "").startswith("https://") else ""
        value = self._sessions.cookie(session)
        return f"{self._cookie}={value}; Path=/; Max-Age={LIFE_SECONDS}; HttpOnly; SameSite=Strict{secure}"


def _cookie(headers: Headers, name: str) -> str | None:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    return cookies[name].value if name in cookies else None


def _same_origin(headers: Headers) -> bool:
    """A browser tells the origin of every form. Its scheme is not compared: a proxy may have ended TLS before us."""
    _, separator, place = headers.get("origin", "").partition("://")
    return bool(separator) and place == headers.get("host", "")


def _from_elsewhere(headers: Headers) -> bool:
    return headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
