"""Who looks at the page: a signed cookie, a token against forged forms, and whose token let one in.

Sessions that nobody signed in for are kept by the browser alone; the key that signs them is made anew by each
process, so a restart ends them all.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass

from elm_agent.api.access import EVERYTHING, Access, Holder

LIFE_SECONDS = 12 * 3600
MOST_HOLDERS = 1000  # signed in at the same time; then the oldest goes
_LONGEST_COOKIE = 200


@dataclass(frozen=True, slots=True)
class Session:
    """``form``: what every form of this session carries. ``holder``: who signed in; None: nobody yet."""

    nonce: str
    expires: int
    form: str
    holder: Holder | None


class Sessions:
    """``tokens``: who may sign in. Safe from any thread."""

    def __init__(self, tokens: Access) -> None:
        self._tokens = tokens
        self._key = secrets.token_bytes(32)
        self._holders: dict[str, Holder] = {}
        self._lock = threading.Lock()

    @property
    def open_to_all(self) -> bool:
        """Whether no token is asked for."""
        return self._tokens.open

    def begin(self) -> Session:
        """A new session of nobody."""
        return self._session(secrets.token_urlsafe(18), int(time.time()) + LIFE_SECONDS)

    def sign_in(self, token: str) -> Session | None:
        """A new session of whose token it is; None for no such token. Tokens are compared as hashes."""
        holder = self._tokens.holder(token)
        if holder is None:
            return None
        nonce = secrets.token_urlsafe(18)
        with self._lock:
            self._holders[nonce] = holder
            while len(self._holders) > MOST_HOLDERS:
                del self._holders[next(iter(self._holders))]
        return self._session(nonce, int(time.time()) + LIFE_SECONDS)

    def sign_out(self, session: Session) -> None:
        """The session's cookie is nobody's from now on."""
        with self._lock:
            self._holders.pop(session.nonce, None)

    def cookie(self, session: Session) -> str:
        """What the browser keeps."""
        plain = f"{session.nonce}.{session.expires}"
        return f"{plain}.{self._sign('cookie', plain)}"

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None for none, a forged or an old one."""
        if cookie is None or len(cookie) > _LONGEST_COOKIE or not cookie.isascii():
            return None
        plain, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature, self._sign("cookie", plain)):
            return None
        nonce, _, expires = plain.rpartition(".")
        return self._session(nonce, int(expires)) if int(expires) > time.time() else None

    def is_form_of(self, session: Session, form: str) -> bool:
        """Whether a form was made for this session, compared in constant time."""
        return hmac.compare_digest(form.encode("utf-8", "surrogatepass"), session.form.encode())

    def _session(self, nonce: str, expires: int) -> Session:
        holder = EVERYTHING if self.open_to_all else self._holders.get(nonce)
        return Session(nonce, expires, self._sign("form", nonce), holder)

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()
